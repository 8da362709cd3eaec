"""Plain routes: outcomes, and what a gateway tells of itself. Rows to predict have a shorter way of their own."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import msgspec

from keepwell.core.errors import KeepwellError
from keepwell.core.records.predictions import Outcome
from keepwell.serving.desk.codec import NOT_JSON, encode, encode_error, event_time
from keepwell.serving.desk.desk import Desk
from keepwell.serving.desk.loading import Loaded
from keepwell.serving.protocols import Call
from keepwell.serving.telemetry.exposition import CONTENT_TYPE
from keepwell.serving.telemetry.metrics import gateway_page
from keepwell.serving.transport.floor import Caller, Floor, Slot

_TEXT = CONTENT_TYPE.encode()


class _OutcomeRow(msgspec.Struct, kw_only=True):
    id: str
    endpoint: str
    value: float
    time: int | str | None = None


class _OutcomeBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    outcomes: list[_OutcomeRow]


_decoder = msgspec.json.Decoder(_OutcomeBody)


def answer(floor: Floor, caller: Caller, slot: Slot, call: Call) -> None:
    """Answer what no protocol did."""
    desk, method, path = floor.desk, call.method, call.path
    if method == "POST" and path == "/v1/outcomes":
        _outcomes(floor, caller, slot, call.body)
    elif method != "GET":
        known = path in {"/live", "/ready", "/metrics", "/v1/endpoints", "/v1/outcomes"}
        caller.fill(
            slot, 405 if known else 404, encode_error(f"{method} {path} is not served here.")
        )
    elif path == "/live":
        caller.fill(slot, 200, b'{"live":true}')
    elif path == "/ready":
        state = {"ready": desk.ready, "edition": desk.edition, "problem": desk.problem}
        caller.fill(slot, 200 if desk.ready else 503, encode(state))
    elif path == "/metrics":
        caller.fill(slot, 200, gateway_page(desk.meters).encode(), content=_TEXT)
    elif path == "/v1/endpoints":
        told = _describe(desk)
        if floor.gate.closed:
            told["tokens"] = floor.gate.problem or "good"
        if floor.tls is not None:
            told["tls"] = floor.tls.problem or "good"
        caller.fill(slot, 200, encode(told))
    else:
        caller.fill(
            slot,
            404,
            encode_error(
                f"There is nothing at {path}. Predictions: POST /v1/endpoints/NAME/predict."
            ),
        )


def _outcomes(floor: Floor, caller: Caller, slot: Slot, body: bytes) -> None:
    desk = floor.desk
    arrived = time.time_ns() // 1000
    try:
        given = _decoder.decode(body).outcomes
        rows = [
            Outcome(
                id=row.id,
                time=_moment(row.time, arrived),
                endpoint=row.endpoint,
                value=row.value,
                arrived=arrived,
            )
            for row in given
        ]
        unknown = {row.endpoint for row in rows} - set(desk.endpoints)
        if unknown:
            caller.fill(slot, 404, encode_error(f"There is no endpoint {min(unknown)!r}."))
            return
        if rows:
            desk.outcomes(rows)
            desk.meters.outcomes += len(rows)
        if any(desk.endpoints[row.endpoint].edition.log == "sync" for row in rows):
            floor.disk.when_durable(partial(_accept, caller, slot, len(rows)))
            return
        if rows:
            floor.disk.sync_later()
        _accept(caller, slot, len(rows), "")
    except NOT_JSON as error:
        caller.fill(
            slot,
            422,
            encode_error(f'{error}. Send {{"outcomes": [{{"id", "endpoint", "value", "time"}}]}}.'),
        )
    except KeepwellError as error:
        caller.fill(slot, 422 if error.code == "invalid_input" else 503, encode_error(str(error)))


def _accept(caller: Caller, slot: Slot, rows: int, problem: str) -> None:
    if problem:
        caller.fill(slot, 503, encode_error(problem))
    else:
        caller.fill(slot, 200, encode({"accepted": rows}))


def _moment(given: int | str | None, arrived: int) -> int:
    if given is None:
        return arrived
    return event_time(given)


def _describe(desk: Desk) -> dict[str, Any]:
    return {
        "edition": desk.edition,
        "problem": desk.problem,
        "endpoints": [
            {
                "name": name,
                "model": serving.edition.model,
                "plan": serving.edition.plan,
                "refused": serving.edition.refused,
                "unit": serving.edition.unit,
                "time": serving.edition.time,
                "columns": list(serving.codec.names) if serving.codec else [],
                "arms": [_arm(loaded) for loaded in serving.arms],
                "mirrors": [_arm(loaded) for loaded in serving.mirrors],
                "cohorts": [
                    {"cohort": cohort.label, "arm": cohort.arm}
                    for cohort in serving.assignment.cohorts
                ],
                "left_out": list(serving.left_out),
            }
            for name, serving in desk.endpoints.items()
        ],
    }


def _arm(loaded: Loaded) -> dict[str, Any]:
    arm = loaded.arm
    facts = {
        "name": arm.name,
        "version": arm.version,
        "weight": arm.weight,
        "artefact": arm.artefact,
    }
    if loaded.beside:
        facts["runtime"] = loaded.predictor.state()  # type: ignore[attr-defined]
    return facts
