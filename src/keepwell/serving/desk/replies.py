"""Replies: what a round computed, written as each of its requests wants to read it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from keepwell.core.records.traffic import Arm
from keepwell.serving.desk.asks import Ask
from keepwell.serving.desk.calls import ANOTHER_ROW, NOT_A_NUMBER, Tick
from keepwell.serving.desk.codec import encode
from keepwell.serving.desk.loading import Loaded, Serving
from keepwell.serving.desk.rounds import Round
from keepwell.serving.log.batches import ERROR, Answerer, Answers, Batch


def reply(made: Round, batch: Batch, tick: Tick) -> None:
    """Write the answers of a round into its requests; with the log level ``sync`` they wait for the disk."""
    serving, asks, edges = made.serving, made.asks, made.edges
    durable = serving.edition.log == "sync"
    outputs = tick.outputs
    texts: list[bytes] | None = None
    answered = tick.by
    begun = b'"%s' % batch.prefix.encode()
    tails = serving.tails
    for place, ask in enumerate(asks):
        start, stop = edges[place], edges[place + 1]
        if tick.statuses is not None and tick.statuses[start] == ERROR:
            _refuse(serving, ask, tick, start, stop)
        elif ask.protocol is not None:
            answers = Answers(batch, outputs[start:stop], start, stop)
            ask.answer, ask.content = ask.protocol.encode(serving, ask, answers)
            ask.status = 200
        else:
            if texts is None:
                texts = _texts(outputs)
            parts = []
            for k in range(start, stop):
                identity = (
                    encode(batch.ids[k]) if batch.ids else b'%s%x"' % (begun, batch.first + k)
                )
                tail = tails[answered[k] if answered else 0]
                parts.append(b'{"id":%s,"prediction":%s%s' % (identity, texts[k], tail))
            ask.answer = b'{"predictions":[%s]}' % b",".join(parts)
            ask.status = 200
        if durable:
            ask.waits = True


def reply_probe(
    serving: Serving, loaded: Loaded, ask: Ask, values: npt.NDArray[np.float64]
) -> None:
    """Answer a probe."""
    if not np.isfinite(values).all():
        ask.refuse(503, f"ValueError: {NOT_A_NUMBER}")
        return
    ask.status = 200
    if ask.protocol is not None:
        records = _probed(serving, loaded.arm, values)
        ask.answer, ask.content = ask.protocol.encode(serving, ask, records)
        return
    ask.answer = encode(
        {"predictions": [{"prediction": v, "version": loaded.arm.version} for v in values.tolist()]}
    )


def _refuse(serving: Serving, ask: Ask, tick: Tick, start: int, stop: int) -> None:
    k = next(k for k in range(start, stop) if tick.errors[k] != ANOTHER_ROW)
    arm = serving.arms[0 if tick.chosen is None else tick.chosen[k]].arm
    ask.refuse(
        503,
        f"The model of {arm.model}/{arm.version} failed on row {k - start}: {tick.errors[k]}.",
    )


def _probed(serving: Serving, arm: Arm, values: npt.NDArray[np.float64]) -> Answers:
    """Put what a probe said into records, for protocols to write. They have no id and are never logged."""
    n = len(values)
    batch = Batch(
        endpoint=serving.edition.name,
        plan=serving.edition.plan,
        arms=serving.names,
        answerers=(Answerer(arm.name, arm.version, arm.artefact, 0),),
        arrived=0,
        mirror=True,
        rows=n,
        prefix="",
        first=0,
        ids=[""] * n,
        outputs=values.tobytes(),
        classes=values.shape[1] if values.ndim == 2 else 0,
        latencies=bytes(4),
    )
    return Answers(batch, values, 0, n)


def _texts(outputs: npt.NDArray[np.float64]) -> list[bytes]:
    """Write answers as JSON, all at once."""
    text = encode(outputs.tolist())
    if outputs.ndim == 1:
        return text[1:-1].split(b",")
    return [b"[%s]" % row for row in text[2:-2].split(b"],[")]
