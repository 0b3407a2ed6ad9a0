"""Ways to store a network in less: low rank, weights that share values, small integers. Each is a function of data."""
