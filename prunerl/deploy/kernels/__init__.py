"""Products of matrix and vector for this machine: a file for each way of storing a matrix, which writes C for it."""
