"""What a gateway says of the models it serves, in the words of the Open Inference Protocol: REST and gRPC share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import keepwell
from keepwell.core.errors import Conflict, InvalidInput, NotFound, Refused, Unavailable, near_miss
from keepwell.serving.desk.desk import Desk
from keepwell.serving.desk.loading import Serving
from keepwell.serving.protocols.tensors import OF_COLUMN
from keepwell.serving.telemetry.meters import Work

PLATFORM = "keepwell"
EXTENSIONS = ("binary_tensor_data", "model_repository", "parameters", "statistics")


def server() -> dict[str, Any]:
    """Describe the server."""
    return {
        "name": "keepwell",
        "version": keepwell.__version__,
        "extensions": list(EXTENSIONS),
    }


def serving_of(desk: Desk, name: str) -> Serving:
    """Find an endpoint. Raises NotFound, and Unavailable while nothing is loaded."""
    serving = desk.endpoints.get(name)
    if serving is None and not desk.edition:
        raise Unavailable(f"Nothing is loaded yet. {desk.problem}".strip())
    if serving is None:
        raise NotFound(
            f"There is no model {name[:80]!r}: models are endpoints.",
            todo=near_miss(name[:80], desk.endpoints),
        )
    return serving


def versions(serving: Serving) -> list[str]:
    """List the versions that may be named: of the arms, then of the mirrors."""
    loaded = (*serving.arms, *serving.mirrors)
    return list(dict.fromkeys(str(one.arm.version) for one in loaded))


def _known(serving: Serving, version: str) -> None:
    if version and version not in versions(serving):
        raise NotFound(
            f"Version {version[:40]!r} of {serving.edition.name!r} is not loaded.",
            todo=near_miss(version[:40], versions(serving)),
        )


def model_ready(desk: Desk, name: str, version: str) -> bool:
    """Tell whether a model answers. Raises NotFound for a name that is no endpoint."""
    serving = serving_of(desk, name)
    return bool(serving.arms) and (not version or version in versions(serving))


def model(desk: Desk, name: str, version: str) -> dict[str, Any]:
    """Describe a model's inputs and outputs. Raises NotFound, Unavailable if nothing may answer."""
    serving = serving_of(desk, name)
    codec = serving.codec
    if codec is None:
        raise Unavailable(
            f"The endpoint {name!r} has no version that may answer: "
            f"{serving.edition.refused or 'nothing is deployed'}."
        )
    _known(serving, version)
    inputs = [
        {"name": column.name, "datatype": OF_COLUMN[column.dtype], "shape": [-1]}
        for column in codec.signature.inputs
    ]
    if serving.edition.time in codec.extra:
        # Without it no decision can be placed in time; the unit's field may be left out.
        inputs.append({"name": serving.edition.time, "datatype": "BYTES", "shape": [-1]})
    classes = len(codec.signature.classes)
    many = codec.signature.task == "multiclass"
    return {
        "name": name,
        "versions": versions(serving),
        "platform": PLATFORM,
        "inputs": inputs,
        "outputs": [
            {
                "name": "prediction",
                "datatype": "FP64",
                "shape": [-1, classes or -1] if many else [-1],
            },
            {"name": "id", "datatype": "BYTES", "shape": [-1]},
            {"name": "version", "datatype": "INT64", "shape": [-1]},
            {"name": "arm", "datatype": "BYTES", "shape": [-1]},
        ],
    }


def index(desk: Desk, *, ready: bool) -> list[dict[str, Any]]:
    """List what is in the repository: a line a version, and one for an endpoint where nothing may answer."""
    lines: list[dict[str, Any]] = []
    for name, serving in desk.endpoints.items():
        if not serving.arms and not ready:
            reason = serving.edition.refused or "nothing is deployed"
            lines.append({"name": name, "version": "", "state": "UNAVAILABLE", "reason": reason})
        lines += [
            {"name": name, "version": version, "state": "READY", "reason": ""}
            for version in (versions(serving) if serving.arms else [])
        ]
    return lines


def load(desk: Desk, name: str, parameters: Mapping[str, Any]) -> None:
    """Do nothing where the plan serves the model already. Raises NotFound, InvalidInput, Refused otherwise.

    Loading is no way round the evidence: what is served is ruled by the endpoint's traffic plan alone.
    """
    serving = serving_of(desk, name)
    if parameters:
        raise InvalidInput(
            f"The load of {name!r} brings {', '.join(map(repr, sorted(parameters)))[:200]}.",
            todo="A version's files and settings come from its release; load it without parameters.",
        )
    if not serving.arms:
        raise Refused(
            f"Nothing may answer at {name!r}: {serving.edition.refused or 'nothing is deployed'}.",
            todo="The traffic plan rules what is served: activate a released version.",
        )


def unload(desk: Desk, name: str) -> NoReturn:
    """Refuse: raises NotFound for a name that is no endpoint, Conflict for one that is."""
    serving = serving_of(desk, name)
    raise Conflict(
        f"The endpoint {serving.edition.name!r} is served by its traffic plan and is not unloaded from outside.",
        todo="Change the plan instead: activate another version, or retire this one.",
    )


def statistics(desk: Desk, name: str, version: str) -> list[dict[str, Any]]:
    """Give the counters of one model, or of all if ``name`` is empty. Raises NotFound."""
    names = [name] if name else sorted(desk.endpoints)
    lines: list[dict[str, Any]] = []
    counted = desk.meters.work()
    for one in names:
        serving = serving_of(desk, one)
        _known(serving, version)
        for number in versions(serving):
            if version in {"", number}:
                lines.append(_line(one, number, counted.get((one, int(number)), Work())))
    return lines


def _line(name: str, version: str, work: Work) -> dict[str, Any]:
    # What is not measured apart is left out, not told as nought: time in the queue, time around the model.
    success = {"count": work.calls, "ns": work.spent}
    return {
        "name": name,
        "version": version,
        "last_inference": work.last,
        "inference_count": work.rows,
        "execution_count": work.calls,
        "inference_stats": {
            "success": success,
            "fail": {"count": work.failed, "ns": work.failed_spent},
            "compute_infer": success,
        },
    }
