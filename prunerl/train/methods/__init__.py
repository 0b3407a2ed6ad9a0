"""Methods of sparse training, one a file."""
