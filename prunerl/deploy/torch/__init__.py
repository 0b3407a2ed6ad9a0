"""A program as a PyTorch module, and as a ``torch.export`` file."""
