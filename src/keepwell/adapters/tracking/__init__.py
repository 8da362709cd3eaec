"""Tracking in SQL: runs, metrics and files of experiments in the same database as the store."""
