"""What every room may use, such as errors, paths and processes; imports nothing of this project."""
