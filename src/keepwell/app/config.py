"""Reads a project's folder: the values of ``keepwell.toml`` and the declarations of its module."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
import traceback
from pathlib import Path

import msgspec

from keepwell.core.errors import InvalidInput, NotFound, near_miss
from keepwell.core.project import ModelDeclaration, Project, collecting
from keepwell.core.settings import Settings

FILE = "keepwell.toml"


def find_project(start: Path) -> Path:
    """Give the folder, at or above ``start``, that holds ``keepwell.toml``. Raises NotFound."""
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / FILE).is_file():
            return folder
    raise NotFound(
        f"There is no {FILE} here or in any folder above.",
        where=str(start),
        todo="Run 'keepwell init' to make a project, or change into one.",
    )


def read_settings(folder: Path) -> Settings:
    """Read and check ``keepwell.toml``. Raises NotFound, InvalidInput naming the field."""
    path = folder / FILE
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(
            f"There is no {FILE}.", where=str(folder), todo="Run 'keepwell init'."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"The file cannot be read: {error}.", where=str(path)) from error
    try:
        values = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(
            f"The file is not valid TOML: {error}.", where=str(path), todo="Mend that line."
        ) from error
    try:
        return msgspec.convert(values, type=Settings)
    except msgspec.ValidationError as error:
        raise InvalidInput(
            f"{error}.",
            where=str(path),
            todo="The reference page 'settings' lists every table and field.",
        ) from error


def read_project(folder: Path, settings: Settings) -> Project:
    """Import the project's module and give what it declares. Raises InvalidInput with the user's own line."""
    name = settings.project.module.removesuffix(".py")
    path = folder / f"{name.replace('.', '/')}.py"
    if not path.is_file():
        path = folder / name.replace(".", "/") / "__init__.py"
    if not path.is_file():
        raise NotFound(
            f"The project's module {name!r} does not exist.",
            where=str(folder / FILE),
            todo=near_miss(name, [found.stem for found in folder.glob("*.py")]),
        )
    module_name = name
    if str(folder) not in sys.path:
        # Fitted estimators of the user's own classes must be found again by this name.
        sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(
        module_name,
        path,
        submodule_search_locations=[str(path.parent)] if path.name == "__init__.py" else None,
    )
    if spec is None or spec.loader is None:
        raise InvalidInput("The project's module cannot be imported.", where=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    with collecting(Project(name=settings.project.name)) as project:
        try:
            spec.loader.exec_module(module)
        except InvalidInput:
            raise
        except Exception as error:
            frames = [
                f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)
            ]
            line = f":{frames[-1].lineno}" if frames else ""
            raise InvalidInput(
                f"Importing it raised {type(error).__name__}: {error}.",
                where=f"{path}{line}",
                todo="Mend that line.",
            ) from error
    _check(folder, settings, project)
    return project


def _check(folder: Path, settings: Settings, project: Project) -> None:
    where = str(folder / FILE)
    for name, endpoint in settings.endpoints.items():
        if endpoint.model not in project.models:
            raise InvalidInput(
                f"The endpoint {name!r} serves the model {endpoint.model!r}, which is not declared.",
                where=where,
                todo=near_miss(endpoint.model, project.models),
            )
    if settings.demo is not None:
        for user in (settings.demo.author, *settings.demo.approvers):
            if user not in settings.users:
                raise InvalidInput(
                    f"[demo] names the user {user!r}, who is not declared.",
                    where=where,
                    todo=near_miss(user, settings.users),
                )
    for model in project.models.values():
        _check_model(model)


def _check_model(model: ModelDeclaration) -> None:
    where = f"model {model.name!r}"
    if not model.candidates:
        raise InvalidInput(
            "The model has no candidate.",
            where=where,
            todo="Decorate a training function with '@<model>.candidate(\"name\")'.",
        )
    if model.baseline_function is None:
        raise InvalidInput(
            "The model has no baseline to beat.",
            where=where,
            todo="Decorate a rule without learning with '@<model>.baseline'.",
        )
    if model.kpi_function is None:
        raise InvalidInput(
            "The model has no KPI.",
            where=where,
            todo="Decorate a function of (predictions, outcomes) with '@<model>.kpi(unit=\"USD\")'.",
        )


def load(folder: Path) -> tuple[Settings, Project]:
    """Read the values and the declarations of the project in this folder."""
    settings = read_settings(folder)
    return settings, read_project(folder, settings)
