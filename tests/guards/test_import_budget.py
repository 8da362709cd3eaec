"""What starts often starts light: which packages may be in memory after each entry, told by a fresh interpreter."""

import json
import subprocess
import sys

import pytest

EVERYTHING = {
    "alembic", "cryptography", "dbos", "duckdb", "grpc", "httptools", "jinja2", "numpy", "onnxruntime", "opentelemetry", "pandas", "polars",
    "psycopg", "scipy", "sklearn", "sqlalchemy", "starlette", "uvicorn", "uvloop",
}  # fmt: skip
HELP = "import sys; sys.argv = ['keepwell', '--help']\nfrom keepwell.app.cli import main\ntry: main()\nexcept SystemExit: pass"

BUDGET = {
    # A project's module imports keepwell in every process; a command's help must be instant.
    "keepwell": ("import keepwell", set()),
    "keepwell --help": (HELP, set()),
    "python -m keepwell": ("import keepwell.__main__", set()),
    # A worker computes and writes its log: no database, no tables, no templates, no engine.
    "a gateway's worker": ("import keepwell.serving.worker", {"httptools", "numpy", "uvloop"}),
    "a gateway's parent": ("import keepwell.serving.gateway", {"numpy"}),
    # What 'keepwell up' starts, and commands that read the store, need no tables and no user's libraries.
    "a project's state": (
        "import keepwell.app.processes, keepwell.app.up",
        {"cryptography"},
    ),
    "the server": (
        "import keepwell.app.api.server",
        {"cryptography", "jinja2", "numpy", "starlette"},
    ),
}
"""What each entry may hold of EVERYTHING."""


def held(code):
    """Which of EVERYTHING is in memory after running the code in a fresh interpreter."""
    told = f"{code}\nimport json, sys\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, check=True, timeout=150
    )
    return {
        name.partition(".")[0] for name in json.loads(ended.stdout.splitlines()[-1])
    } & EVERYTHING


@pytest.mark.parametrize("entry", BUDGET)
def test_an_entry_keeps_its_budget(entry):
    code, allowed = BUDGET[entry]
    assert held(code) - allowed == set()


def test_a_heavy_import_would_be_noticed():
    assert {"polars", "sqlalchemy"} <= held("import keepwell, polars, sqlalchemy")
