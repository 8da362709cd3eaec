"""Contract suites for those who write an adapter: subclass one, say how yours is made, and run pytest."""
