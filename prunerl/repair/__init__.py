"""Repairs: least squares at the cut, distillation on visited states, and the agent's own training."""
