"""Rollouts: strategies look at what the log holds, and what they say becomes the next traffic plan."""
