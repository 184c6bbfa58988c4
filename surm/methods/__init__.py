"""What is compared, and how it makes a backbone trainable; may import `shared` to `models`."""
