"""What every room may use, such as errors, paths and processes; may import no room."""
