"""What is compared, a structure or a baseline: settings, names, and how each makes a backbone trainable; may import `shared`,
`structures`, `tuners` and `models`.
"""
