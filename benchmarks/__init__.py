"""Measurements that take minutes: run by make targets, not shipped in the wheel."""
