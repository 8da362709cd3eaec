"""MLflow's logging operations: metrics, params, tags, batches and the history of a metric."""

from __future__ import annotations

from typing import Any

from keepwell.app.api.mlflow.wire import (
    Body,
    Call,
    Operation,
    Pair,
    check_key,
    check_page,
    check_text,
    microseconds,
    milliseconds,
    needed,
    number,
    paged,
)
from keepwell.core.errors import InvalidInput
from keepwell.core.records.tracking import Metric, RunBatch

LARGEST = 2**63 - 1


def written_metric(metric: Metric) -> dict[str, Any]:
    """Write a metric as MLflow does."""
    found: dict[str, Any] = {
        "key": metric.key,
        "value": number(metric.value),
        "timestamp": milliseconds(metric.time),
        "step": metric.step,
    }
    if metric.model:
        found |= {"model_id": metric.model}
    if metric.dataset:
        found |= {"dataset_name": metric.dataset, "dataset_digest": metric.dataset_digest}
    return found


class GivenMetric(Body):
    """A metric as a client gives it."""

    key: str = ""
    value: float = 0.0
    timestamp: int = 0
    step: int = 0
    model_id: str = ""
    dataset_name: str = ""
    dataset_digest: str = ""

    def metric(self) -> Metric:
        """Take it over. Raises InvalidInput."""
        if not -LARGEST <= self.step <= LARGEST:
            raise InvalidInput(f"step is {self.step}; it must fit 64 bits.")
        return Metric(
            key=check_key(self.key),
            value=self.value,
            time=microseconds(self.timestamp, "timestamp"),
            step=self.step,
            model=self.model_id,
            dataset=self.dataset_name,
            dataset_digest=self.dataset_digest,
        )


class LogMetric(GivenMetric):
    """Body of runs/log-metric."""

    run_id: str = ""
    run_uuid: str = ""


class LogPair(Body):
    """Body of runs/log-parameter and runs/set-tag."""

    run_id: str = ""
    run_uuid: str = ""
    key: str = ""
    value: str = ""


class LogBatch(Body):
    """Body of runs/log-batch."""

    run_id: str = ""
    metrics: tuple[GivenMetric, ...] = ()
    params: tuple[Pair, ...] = ()
    tags: tuple[Pair, ...] = ()


class History(Body):
    """Query of metrics/get-history."""

    run_id: str = ""
    run_uuid: str = ""
    metric_key: str = ""
    page_token: str = ""
    max_results: int = 25_000


class Bulk(Body):
    """Query of metrics/get-history-bulk-interval."""

    run_ids: tuple[str, ...] = ()
    metric_key: str = ""
    start_step: int | None = None
    end_step: int | None = None
    max_results: int = 2_500


def _params(given: tuple[Pair, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in given:
        if found.setdefault(check_key(pair.key), check_text(pair.value, "A param", 6_000)) != (
            pair.value
        ):
            raise InvalidInput(f"The batch gives the param {pair.key!r} two values.")
    return found


async def log_metric(call: Call, body: LogMetric) -> None:
    """Log one value of a metric."""
    run = needed(body.run_id or body.run_uuid, "run_id")
    await call.services.commits.log(RunBatch(run=run, metrics=(body.metric(),)))


async def log_param(call: Call, body: LogPair) -> None:
    """Log a param."""
    run = needed(body.run_id or body.run_uuid, "run_id")
    params = _params((Pair(key=body.key, value=body.value),))
    await call.services.commits.log(RunBatch(run=run, params=params))


async def set_tag(call: Call, body: LogPair) -> None:
    """Set a tag."""
    run = needed(body.run_id or body.run_uuid, "run_id")
    tags = {check_key(body.key): check_text(body.value, "A tag", 8_000)}
    await call.services.commits.log(RunBatch(run=run, tags=tags))


async def log_batch(call: Call, body: LogBatch) -> None:
    """Log metrics, params and tags together."""
    if len(body.metrics) > 1000 or len(body.params) > 100 or len(body.tags) > 100:
        raise InvalidInput(
            f"The batch has {len(body.metrics)} metrics, {len(body.params)} params and "
            f"{len(body.tags)} tags.",
            todo="Send at most 1000 metrics, 100 params and 100 tags at a time.",
        )
    await call.services.commits.log(
        RunBatch(
            run=needed(body.run_id, "run_id"),
            metrics=tuple(one.metric() for one in body.metrics),
            params=_params(body.params),
            tags={check_key(t.key): check_text(t.value, "A tag", 8_000) for t in body.tags},
        )
    )


def history(call: Call, body: History) -> dict[str, Any]:
    """Give every value of a metric, page by page."""
    limit = check_page(body.max_results, 25_000)
    offset = int(body.page_token) if body.page_token.isdigit() else 0
    if body.page_token and not (body.page_token.isascii() and body.page_token.isdigit()):
        raise InvalidInput("The page token cannot be read.", todo="Begin again without one.")
    found = call.services.tracker.metric_history(
        needed(body.run_id or body.run_uuid, "run_id"),
        needed(body.metric_key, "metric_key"),
        limit=limit + 1,
        offset=min(offset, LARGEST),
    )
    following = str(offset + limit) if len(found) > limit else ""
    return paged("metrics", [written_metric(one) for one in found[:limit]], following)


def bulk(call: Call, body: Bulk) -> dict[str, Any]:
    """Give values of one metric of several runs, thinned evenly to the number asked for."""
    limit = check_page(body.max_results, 2_500)
    if len(body.run_ids) > 100:
        raise InvalidInput("At most 100 runs can be asked for at once.")
    found = []
    for run in body.run_ids:
        points = [
            point
            for point in call.services.tracker.metric_history(
                run, needed(body.metric_key, "metric_key")
            )
            if (body.start_step is None or point.step >= body.start_step)
            and (body.end_step is None or point.step <= body.end_step)
        ]
        stride = max(1, -(-len(points) // limit))
        kept = points[::stride]
        if points and kept[-1] is not points[-1]:
            kept.append(points[-1])
        found += [written_metric(point) | {"run_id": run} for point in kept]
    return {"metrics": found}


OPERATIONS = (
    Operation("POST", "runs/log-metric", LogMetric, log_metric),
    Operation("POST", "runs/log-parameter", LogPair, log_param),
    Operation("POST", "runs/set-tag", LogPair, set_tag),
    Operation("POST", "runs/log-batch", LogBatch, log_batch),
    Operation("GET", "metrics/get-history", History, history, slow=True),
    Operation("GET", "metrics/get-history-bulk-interval", Bulk, bulk, slow=True),
)
