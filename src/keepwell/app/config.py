"""Reads a project's folder: the values of ``keepwell.toml`` and the declarations of its module."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
import traceback
from pathlib import Path
from typing import Any

import msgspec

from keepwell.core.clock import duration
from keepwell.core.errors import InvalidInput, KeepwellError, NotFound, near_miss
from keepwell.core.project import ModelDeclaration, Project, collecting
from keepwell.core.settings import DURATIONS, Settings

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
        settings = msgspec.convert(values, type=Settings)
    except msgspec.ValidationError as error:
        raise _wrong_value(path, str(error)) from error
    lengths = {
        f"{table}.{field}": getattr(getattr(settings, table), field) for table, field in DURATIONS
    }
    for name, endpoint in settings.endpoints.items():
        place = f"endpoints.{name}.outcome_expires"
        lengths[place] = endpoint.outcome_expires
        if endpoint.default_outcome is not None and not endpoint.outcome_expires:
            raise InvalidInput(
                f"The endpoint {name!r} has a default outcome that no decision would ever get.",
                where=f"{path}: {place}",
                todo="Say after how long a decision without an outcome gets it, for example '30d'.",
            )
    for place, given in lengths.items():
        try:
            duration(given or "0s")
        except InvalidInput as error:
            raise InvalidInput(error.what, where=f"{path}: {place}", todo=error.todo) from error
    if settings.server.port and settings.server.port == settings.server.gateway_port:
        raise InvalidInput(
            f"The server and the gateway have one port, {settings.server.port}.",
            where=f"{path}: server.gateway_port",
            todo="Give them two; 0 takes a free one.",
        )
    if bool(settings.server.tls_certificate) != bool(settings.server.tls_key):
        there, missing = ("tls_certificate", "tls_key")[
            :: 1 if settings.server.tls_certificate else -1
        ]
        raise InvalidInput(
            f"There is a {there} without a {missing}.",
            where=f"{path}: server.{missing}",
            todo="Name both files, or neither.",
        )
    _check_strategies(settings, path)
    return settings


def _check_strategies(settings: Settings, path: Path) -> None:
    from keepwell.serving.rollouts.strategies import STRATEGIES

    stages = [name.strip() for name in settings.rollout.strategy.split(",")]
    for place, name in [
        *(("rollout.strategy", name) for name in stages),
        *((f"strategies.{name}", name) for name in settings.strategies),
    ]:
        if name not in STRATEGIES.names():
            raise InvalidInput(
                f"There is no strategy {name!r}.",
                where=f"{path}: {place}",
                todo=near_miss(name, STRATEGIES.names()),
            )
    if not settings.strategies:
        return  # the rest would load numpy for every command
    from keepwell.serving.rollouts.controllers import rules_of

    for name, rules in settings.strategies.items():
        try:
            rules_of(name, msgspec.to_builtins(settings.rollout), rules)
        except InvalidInput as error:
            where = f"{path}: strategies.{name}"
            raise InvalidInput(error.what, where=where, todo=error.todo) from error


_PLACE = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<place>.*)`)?$", re.DOTALL)
_QUOTED = re.compile(r"(?:unknown field `|enum value ')([^`']*)")


def _wrong_value(path: Path, said: str) -> InvalidInput:
    """Say what the reader of the values said, with the field's place in the file and the nearest allowed name."""
    found = _PLACE.match(said)
    what, place = (found["what"], found["place"] or "") if found else (said, "")
    quoted = _QUOTED.search(what)
    allowed = _allowed(place)
    return InvalidInput(
        f"{what}.".replace("Object", "The table"),
        where=f"{path}: {place}" if place else str(path),
        todo=near_miss(quoted[1], allowed)
        if quoted and allowed
        else "The page 'settings' of the reference lists every table and field.",
    )


def _allowed(place: str) -> list[str]:
    """List the names that may stand at a place such as ``policy`` or ``users[...].roles[0]``."""
    found: Any = msgspec.inspect.type_info(Settings)
    for name in re.findall(r"[^.\[\]]+(?=\.|\[|\]|$)|\.\.\.", place):
        if isinstance(found, msgspec.inspect.UnionType):
            found = next(t for t in found.types if not isinstance(t, msgspec.inspect.NoneType))
        if isinstance(found, msgspec.inspect.StructType):
            found = next((f.type for f in found.fields if f.encode_name == name), None)
        elif isinstance(found, msgspec.inspect.DictType):
            found = found.value_type
        else:
            found = getattr(found, "item_type", None)
    if isinstance(found, msgspec.inspect.StructType):
        return [field.encode_name for field in found.fields]
    return [str(value) for value in getattr(found, "values", ())]


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
        except KeepwellError as error:
            place = ": ".join(part for part in (_line(path, error), error.where) if part)
            raise type(error)(error.what, where=place, todo=error.todo) from error
        except (Exception, SystemExit) as error:
            said = error.msg if isinstance(error, SyntaxError) else error
            raise InvalidInput(
                f"Importing it raised {type(error).__name__}: {said}.",
                where=_line(path, error),
                todo="Mend that line.",
            ) from error
    _check(folder, settings, project)
    return project


def _line(path: Path, error: BaseException) -> str:
    """Give ``file:line`` of the module where an exception came from."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return f"{path}:{frames[-1].lineno}" if frames else str(path)


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
