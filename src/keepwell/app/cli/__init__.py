"""The command line: each command parses, calls one function, prints; ``--json`` for machines, exit codes that mean something."""

from keepwell.app.cli.main import main

__all__ = ["main"]
