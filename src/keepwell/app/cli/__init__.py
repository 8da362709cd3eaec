"""The command line: each command parses, calls one function and prints, for people or with ``--json``."""

from keepwell.app.cli.main import main

__all__ = ["main"]
