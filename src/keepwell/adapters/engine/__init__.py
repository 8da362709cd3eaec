"""Engines of durable work."""
