"""Bridges to RL libraries, one file each. A bridge implements :class:`prunerl.types.Agent`."""
