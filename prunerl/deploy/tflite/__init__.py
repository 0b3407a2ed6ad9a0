"""A program as a TensorFlow Lite file."""
