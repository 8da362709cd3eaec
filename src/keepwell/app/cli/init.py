"""``keepwell init``: a small project that runs as it is and is meant to be edited."""

from __future__ import annotations

import argparse
import sys

from keepwell.app.cli.common import print_json
from keepwell.app.template import write_template


def run(given: argparse.Namespace) -> int:
    """Make the project and say what comes next."""
    files = write_template(given.folder)
    if given.json:
        print_json({"folder": str(given.folder), "files": files})
        return 0
    sys.stdout.write(
        f"made {given.folder} with {', '.join(files)}\n\n"
        f"next:\n  cd {given.folder}\n  keepwell train --release   train the candidates and release them\n"
        "  keepwell status             see what came of it\n"
    )
    return 0
