"""What the seven steps of a release ask. Each function reads what it needs and gives the answers of its checks."""

from __future__ import annotations

import math
import time
from typing import Any

import msgspec
import numpy as np

from keepwell.checks.artefact.manifest import manifest_complete
from keepwell.checks.artefact.pickles import scan_all
from keepwell.checks.data.expectations import Expectations, check_frame
from keepwell.checks.model.limits import at_most
from keepwell.checks.model.quality import (
    beats_baseline,
    calibration,
    prediction_range,
    same_predictions,
    worst_slice,
)
from keepwell.checks.model.value import kpi_gain
from keepwell.core.admission import artefact_problems
from keepwell.core.errors import NotFound
from keepwell.core.records.data import Snapshot, TrainingSet
from keepwell.core.records.evidence import CheckResult
from keepwell.core.records.lifecycle import Procedure
from keepwell.core.records.models import ModelVersion, Package
from keepwell.core.records.traffic import Endpoint
from keepwell.data.decisions import LABEL_TIME
from keepwell.data.features import TIME
from keepwell.data.training_sets import read_training_set
from keepwell.lifecycle.context import Context
from keepwell.lifecycle.policies import read_policy
from keepwell.lifecycle.validation import as_request_rows, read_golden, read_parts, read_validation
from keepwell.stats.performance import roc_auc
from keepwell.training.own import money_of
from keepwell.training.train import reproduce

SAMPLE_ROWS = 500
"""Validation rows that are sent over HTTP in integration testing."""
TELLTALE_AUC = 0.995
"""A single feature that ranks the labels this well almost surely contains them."""


def _answer(check: str, problems: list[str], good: str, **measured: Any) -> CheckResult:
    return CheckResult(
        check=check,
        verdict="fail" if problems else "pass",
        message="; ".join(problems) if problems else good,
        measured=measured,
    )


def _training_set(context: Context, version: ModelVersion) -> TrainingSet:
    found = context.store.get(TrainingSet, version.training_set)
    if found is None:
        raise NotFound(f"The training set of {version.label()} is not in the store.")
    return found


def model_risk_review(
    context: Context, procedure: Procedure, version: ModelVersion
) -> tuple[CheckResult, ...]:
    """Is it known whose model this is and what harm it can do, and is nothing in it that must not be?"""
    del procedure
    declared = context.project.model(version.model)
    artefact, package = read_parts(version, blobs=context.blobs)
    told = [
        f"no {name} is declared" for name in ("owner", "purpose") if not getattr(declared, name)
    ]
    files = ((name, context.blobs.get(digest)) for name, digest in artefact.files.items())
    scan = scan_all(files, own=package.own_modules)
    rows = read_training_set(_training_set(context, version), blobs=context.blobs)
    waits = rows.get_column(LABEL_TIME) - rows.get_column(TIME)
    early = int((waits <= 0).sum())
    return (
        _answer(
            "risk declared",
            told,
            f"owner {declared.owner}, tier {declared.risk}, purpose stated",
            tier=declared.risk,
        ),
        scan,
        _answer(
            "labels come after decisions",
            [f"{early:,} labels were known before their decision"] if early else [],
            f"{rows.height:,} labels, the earliest {float(waits.to_numpy().min()) / 3.6e9:.1f} h after its decision",
            early=early,
        ),
        _telltale(context, version),
    )


def _telltale(context: Context, version: ModelVersion) -> CheckResult:
    rows, table = read_validation(version, blobs=context.blobs)
    _, package = read_parts(version, blobs=context.blobs)
    if rows.task != "binary" or len(np.unique(rows.label)) < 2:
        return CheckResult(
            check="no telltale feature",
            verdict="waived",
            message=f"for binary tasks, not {rows.task}",
        )
    best, name = 0.0, ""
    for column in package.signature.inputs:
        if column.dtype == "string":
            continue
        values = table.get_column(column.name).to_numpy()
        known = np.isfinite(values)
        if known.sum() < 50 or len(np.unique(rows.label[known])) < 2:
            continue
        auc = roc_auc(rows.label[known], values[known])
        if max(auc, 1 - auc) > best:
            best, name = max(auc, 1 - auc), column.name
    problems = (
        [f"{name} alone ranks the labels with an AUC of {best:.3f}"] if best > TELLTALE_AUC else []
    )
    return _answer(
        "no telltale feature",
        problems,
        f"the strongest single feature, {name}, has an AUC of {best:.3f}",
        auc=best,
    )


def candidate_release(
    context: Context, procedure: Procedure, version: ModelVersion
) -> tuple[CheckResult, ...]:
    """Is the candidate whole, better than the rule it replaces, and fit in every slice?"""
    limits = read_policy(procedure.policy, store=context.store)
    artefact, package = read_parts(version, blobs=context.blobs)
    rows, _ = read_validation(version, blobs=context.blobs)
    answers = [
        _answer(
            "artefact intact",
            artefact_problems(version, blobs=context.blobs),
            f"{len(artefact.files)} files hashed again",
        ),
        manifest_complete(artefact, package),
        prediction_range(rows.prediction, task=rows.task),
        calibration(rows, limit=limits.calibration_error),
        worst_slice(
            rows,
            minimum=limits.worst_slice_rows,
            calibration_limit=limits.worst_slice_calibration,
            loss_ratio=limits.worst_slice_loss_ratio,
        ),
    ]
    if limits.beat_baseline:
        answers.append(beats_baseline(rows))
    answers += _data_like_before(context, version)
    return tuple(answers)


def _data_like_before(context: Context, version: ModelVersion) -> list[CheckResult]:
    """For a renewal: is the data that it was trained on still of the champion's kind?"""
    if version.renews is None:
        return []
    champion = context.store.get(ModelVersion, version.model, version.renews)
    if champion is None:
        return []
    before = _training_set(context, champion).snapshots
    answers = []
    for source, content in _training_set(context, version).snapshots.items():
        if source not in before or before[source] == content:
            continue
        found, expected = (_expectations(context, digest) for digest in (content, before[source]))
        for result in check_frame(found, expected):
            answers.append(msgspec.structs.replace(result, check=f"{source}: {result.check}"))
    return answers


def _expectations(context: Context, content: str) -> Expectations:
    snapshot = context.store.get(Snapshot, content)
    if snapshot is None:
        raise NotFound("A snapshot is not in the store.", where=content)
    return msgspec.json.decode(context.blobs.get(snapshot.expectations), type=Expectations)


def endpoint_identification(
    context: Context, procedure: Procedure, version: ModelVersion
) -> tuple[CheckResult, ...]:
    """Where will it answer, and can those who call there go on calling as they do?"""
    del procedure
    names = [n for n, e in context.settings.endpoints.items() if e.model == version.model]
    answers = [
        _answer(
            "endpoint declared",
            [] if names else [f"no endpoint in keepwell.toml serves {version.model!r}"],
            f"endpoint {', '.join(names)}",
        ),
        _answer(
            "code unchanged",
            []
            if context.project.code(version.model) == version.code
            else ["the project's code was changed after training: train again"],
            "the project's code is the code that was trained",
        ),
    ]
    champions = context.store.find(ModelVersion, {"model": version.model, "state": "active"})
    for champion in champions:
        if champion.signature is None or version.signature is None:
            continue
        old = {c.name: c.dtype for c in champion.signature.inputs}
        new = {c.name: c.dtype for c in version.signature.inputs}
        changed = sorted(n for n in old.keys() | new.keys() if old.get(n) != new.get(n))
        answers.append(
            _answer(
                "callers need not change",
                [f"against {champion.label()} the columns {', '.join(changed)} differ"]
                if changed
                else [],
                f"same {len(new)} columns as {champion.label()}",
            )
        )
    return tuple(answers)


def _endpoint(context: Context, version: ModelVersion) -> Endpoint:
    declared = context.project.model(version.model)
    return Endpoint(
        name=version.model,
        model=version.model,
        unit=declared.unit,
        label_delay=declared.label_delay,
        created=context.clock.now(),
    )


def parameter_testing(
    context: Context, procedure: Procedure, version: ModelVersion
) -> tuple[CheckResult, ...]:
    """Do data, parameters and seed give this very model again; is another seed as good; does it bear extremes?"""
    limits = read_policy(procedure.policy, store=context.store)
    _, package = read_parts(version, blobs=context.blobs)

    def trained(seed: int) -> tuple[str, Any]:
        return reproduce(
            version,
            package,
            _training_set(context, version),
            project=context.project,
            blobs=context.blobs,
            validation_share=limits.validation_share,
            seed=seed,
        )

    again, predictions = trained(package.seed)
    _, other = trained(package.seed + 1)
    rows, _ = read_validation(version, blobs=context.blobs)
    extremes = _extreme_rows(package)
    with context.stage.open(version, _endpoint(context, version)) as staged:
        answers = staged.predict(extremes)
    return (
        _reproduced(version, again, predictions, rows.prediction),
        _seed_spread(
            float(rows.loss(rows.prediction).mean()),
            float(rows.loss(other).mean()),
            limit=limits.seed_spread,
        ),
        msgspec.structs.replace(
            prediction_range(
                np.array(answers, dtype=np.float64),
                task=package.signature.task,
                what="extreme rows",
            ),
            check="extreme inputs",
        ),
    )


def _reproduced(version: ModelVersion, again: str, found: Any, recorded: Any) -> CheckResult:
    """Judge a training that was done again: the same bytes, or at least the same predictions."""
    if again == version.artefact:
        return CheckResult(
            check="reproduced",
            verdict="pass",
            message="training again from the recorded data, code, parameters and seed gave the same bytes",
            measured={"artefact": again},
        )
    return same_predictions(found, recorded, tolerance=1e-6, what="reproduced, to the last bits")


def _seed_spread(loss: float, other: float, *, limit: float) -> CheckResult:
    """Judge how far the loss moves with the seed: a model that is only as good by luck will not be so again."""
    # The mean of both is not zero unless both are, and then nothing moved.
    spread = abs(other - loss) / max((abs(loss) + abs(other)) / 2, 1e-12)
    return CheckResult(
        check="seed",
        verdict="pass" if spread <= limit else "fail",
        message=f"with another seed the loss is {other:.4g} instead of {loss:.4g}, limit {limit:.0%} apart",
        measured={"spread": spread},
        limits={"spread": limit},
    )


def _extreme_rows(package: Package) -> list[dict[str, Any]]:
    """Make rows at and beyond the edges of what training saw: all missing, all lowest, all highest, far outside."""

    def value(column: Any, kind: str) -> Any:
        if column.dtype == "string":
            return (
                None
                if kind == "missing"
                else (
                    column.categories[0] if kind == "low" and column.categories else "(never seen)"
                )
            )
        low, high = column.low or 0.0, column.high or 0.0
        span = max(high - low, 1.0)
        return {
            "missing": None,
            "low": low,
            "high": high,
            "far below": low - 100 * span,
            "far above": high + 100 * span,
        }[kind]

    kinds = ("missing", "low", "high", "far below", "far above")
    return [{c.name: value(c, kind) for c in package.signature.inputs} for kind in kinds]


def integration_testing(
    context: Context, procedure: Procedure, version: ModelVersion
) -> tuple[CheckResult, ...]:
    """Behind real HTTP, are the answers those of training, and are bad requests refused with a reason?"""
    limits = read_policy(procedure.policy, store=context.store)
    rows, table = read_validation(version, blobs=context.blobs)
    _, package = read_parts(version, blobs=context.blobs)
    sample = table.select(package.signature.names).head(SAMPLE_ROWS)
    values = [
        [None if isinstance(v, float) and math.isnan(v) else v for v in row]
        for row in sample.rows()
    ]
    with context.stage.open(version, _endpoint(context, version)) as staged:
        answers = staged.predict(as_request_rows(values, package))
        waits = []
        for row in as_request_rows(values[:50], package):
            began = time.perf_counter()
            staged.predict([row])
            waits.append((time.perf_counter() - began) * 1000)
        refusals = {
            "no JSON": staged.raw(b"{"),
            "a missing column": staged.raw(b'{"row": {}}'),
            "an unknown column": staged.raw(b'{"row": {"no such column": 1}}'),
        }
        alive = len(staged.predict(as_request_rows(values[:1], package))) == 1
    wrong = [
        f"{what} got HTTP {status}"
        for what, (status, _) in refusals.items()
        if not 400 <= status < 500
    ]
    wrong += [] if alive else ["it did not answer after the bad requests"]
    return (
        same_predictions(
            np.array(answers),
            rows.prediction[: len(values)],
            tolerance=1e-5,
            what="answers over HTTP equal training's",
        ),
        at_most("latency p95", float(np.quantile(waits, 0.95)), limits.latency_ms, unit="ms"),
        _answer(
            "bad requests are refused",
            wrong,
            f"{len(refusals)} kinds of bad request refused with a reason",
        ),
    )


def instantiation_validation(
    context: Context, procedure: Procedure, version: ModelVersion
) -> tuple[CheckResult, ...]:
    """From its blobs alone, in a fresh process: does it load in time, in little memory, and give its golden answers?"""
    limits = read_policy(procedure.policy, store=context.store)
    golden, expected, tolerance = read_golden(version, blobs=context.blobs)
    with context.stage.open(version, _endpoint(context, version)) as staged:
        answers = staged.predict(golden)
        load_seconds, memory = staged.load_seconds, staged.memory_bytes / 1e6
    return (
        same_predictions(
            np.array(answers), np.array(expected), tolerance=tolerance, what="golden rows"
        ),
        at_most("load time", load_seconds, limits.load_seconds, unit="s"),
        at_most("memory", memory, limits.memory_mb, unit="MB"),
    )


def kpi_validation(
    context: Context, procedure: Procedure, version: ModelVersion
) -> tuple[CheckResult, ...]:
    """On the validation rows, does it earn more than the baseline by the project's own money rule?"""
    limits = read_policy(procedure.policy, store=context.store)
    declared = context.project.model(version.model)
    rows, _ = read_validation(version, blobs=context.blobs)
    return (
        kpi_gain(
            money_of(declared, rows.prediction, rows.label),
            money_of(declared, rows.baseline, rows.label),
            clusters=rows.days,
            unit=declared.kpi_unit,
            floor=limits.kpi_floor,
        ),
    )
