"""Run every study of the decision statistics and hold its numbers against their bars.

    python -m benchmarks.stats --quick --json rows.json
    python -m benchmarks.stats --only peeking canary

One line a number on stdout, progress on stderr; `--json` writes a list of rows of name, value, bar,
ok, runs and seed. Ends with 1 if a bar is missed. Two studies run side by side, each on one core.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from benchmarks import studies
from benchmarks.rows import Row


def study_names() -> list[str]:
    """List the studies: the modules beside this file's folder `studies`."""
    return sorted(found.name for found in pkgutil.iter_modules(studies.__path__))


def run_study(name: str, *, quick: bool) -> tuple[list[Row], float]:
    """Run one study; its rows and the seconds it took."""
    started = time.perf_counter()
    rows: list[Row] = importlib.import_module(f"benchmarks.studies.{name}").study(quick)
    return rows, time.perf_counter() - started


def line(row: Row) -> str:
    """Write a row for people."""
    verdict = "holds " if row.ok else "MISSED"
    return f"{verdict} {row.name:<66} {row.value:>12.5g}  {row.bar}  ({row.runs} runs, seed {row.seed})"


def main() -> int:
    """Run what was asked for."""
    names = study_names()
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="shorter runs, seconds each")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--only", nargs="+", choices=names, metavar="STUDY", help=", ".join(names))
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    chosen = options.only or names
    # Each study has a core of its own: threads of the linear algebra would only contend.
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    found: dict[str, list[Row]] = {}
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run_study, name, quick=options.quick): name for name in chosen}
        for done in as_completed(running):
            name = running[done]
            found[name], seconds = done.result()
            print(
                f"{name}: {len(found[name])} rows in {seconds:.0f} s", file=sys.stderr, flush=True
            )
    rows = [row for name in chosen for row in found[name]]
    for row in rows:
        print(line(row))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    missed = [row.name for row in rows if not row.ok]
    print(f"{len(rows) - len(missed)} of {len(rows)} bars hold", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
