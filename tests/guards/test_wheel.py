"""The wheel, installed with what it asks for in an empty environment, is whole: it imports, runs and makes a project."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from scripts.reference import ROOT

import keepwell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NEEDS_AN_EXTRA = {
    "keepwell.serving.protocols.grpc": ("grpc", {"grpc", "google"}),
    "keepwell.serving.transport.grpc": ("grpc", {"grpc", "google"}),
    "keepwell.serving.telemetry.traces": ("otel", {"opentelemetry"}),
    "keepwell.testing": ("testing", {"pytest"}),
}
"""Modules that do not import without an extra, with the packages that it brings."""

IMPORT_ALL = """
import importlib, json, sys
missing = {}
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing[name] = error.name
print(json.dumps(missing))
"""


def run(*command, **more):
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=240, **more
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder of programs of an environment with nothing but the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("empty") / "env"
    uv = str(Path(sys.executable).with_name("uv"))
    run(uv, "venv", "--quiet", "--python", sys.executable, str(folder))
    run(
        uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), str(wheel),
        "--constraint", str(ROOT / "requirements" / "dev.lock"),
    )  # fmt: skip
    return folder / "bin"


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def left_out(packed):
    """Files of the source tree that a wheel does not hold."""
    source = ROOT / "src"
    wanted = [
        path.relative_to(source).as_posix()
        for path in sorted((source / "keepwell").rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]
    return [name for name in wanted if name not in packed]


def test_the_wheel_holds_every_file_of_the_source(wheel):
    packed = names(wheel)
    assert left_out(packed) == []
    for part in ("web/templates/base.html", "web/static/keepwell.css", "migrations/", "py.typed"):
        without = [name for name in packed if part not in name]
        assert without != packed, part
        assert left_out(without), f"a wheel without {part} would not be noticed"
    assert not [name for name in packed if name.startswith(("tests", "docs", "scripts"))]


def unexpected(missing):
    """Modules that failed to import for want of anything but the extra that they are known to need."""
    wrong = []
    for name, package in missing.items():
        known = next(
            (
                brings
                for module, (_, brings) in NEEDS_AN_EXTRA.items()
                if name == module or name.startswith(f"{module}.")
            ),
            set(),
        )
        if str(package).partition(".")[0] not in known:
            wrong.append(f"{name} needs {package}")
    return wrong


def test_every_module_imports_without_extras_or_is_known_to_need_one(wheel, installed):
    modules = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in names(wheel)
        if name.endswith(".py") and "/migrations/" not in name and "__main__" not in name
    ]
    assert len(modules) > 150
    told = run(
        str(installed / "python"), "-c", IMPORT_ALL, input=json.dumps(modules), cwd=installed
    )
    missing = json.loads(told.splitlines()[-1])
    assert unexpected(missing) == []
    assert unexpected({"keepwell.core.clock": "pytest"}) == ["keepwell.core.clock needs pytest"]
    for module in NEEDS_AN_EXTRA:
        assert any(name.startswith(module) for name in missing), f"{module} needs no extra any more"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert {extra for extra, _ in NEEDS_AN_EXTRA.values()} <= set(extras)


def test_the_installed_command_tells_its_version_and_makes_a_project(installed, tmp_path):
    # Nothing of the checkout may help it along.
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    command = str(installed / "keepwell")
    told = run(command, "--version", cwd=tmp_path, env=environment)
    assert told == f"keepwell {keepwell.__version__}\n"
    made = run(command, "init", "tumours", "--json", cwd=tmp_path, env=environment)
    for name in json.loads(made)["files"]:
        assert (tmp_path / "tumours" / name).is_file()
