"""Tests mirror the package: tests/x/test_y.py tests surm/x/y.py."""
