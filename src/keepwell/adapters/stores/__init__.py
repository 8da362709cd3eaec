"""Stores: SQLite for one machine, PostgreSQL beyond it, one code for both."""
