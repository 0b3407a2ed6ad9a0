"""Make deep reinforcement-learning agents small and fast, with proof that they still work."""
