"""Rollouts as people start them: among versions that may answer, by whoever may do so."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keepwell.core.admission import admission_problems, approvals_needed, release_problems
from keepwell.core.clock import Time
from keepwell.core.errors import Conflict, InvalidInput, NotFound, Refused, near_miss
from keepwell.core.records.data import TrainingSet
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.rollouts import OPEN, Look, Preview, Rollout
from keepwell.core.records.traffic import Endpoint, TrafficPlan
from keepwell.core.records.watching import Watermark
from keepwell.lifecycle.roles import require

if TYPE_CHECKING:
    from keepwell.app.wiring import State
    from keepwell.core.records.appraisals import Appraisal, Way
    from keepwell.training.predictors import Predictor


def start_rollout(
    state: State,
    versions: Sequence[ModelVersion],
    *,
    actor: str,
    strategy: str = "",
    rules: Mapping[str, Any] | None = None,
) -> Rollout:
    """Let versions take over, by a strategy or several in a row.

    Raises Refused if one of them may not answer (no passed release, too few approvals) or the person may not do so,
    InvalidInput for wrong rules, Conflict if another rollout is under way.
    """
    endpoint, strategy = _course(state, versions, actor=actor, strategy=strategy)
    _refuse_unadmitted(state, versions)
    return state.rollouts.start(
        id=f"rollout-{secrets.token_hex(4)}",
        endpoint=endpoint,
        version=versions[0],
        others=versions[1:],
        strategy=strategy,
        rules=rules,
        actor=actor,
        makes_champion=True,
    )


def preview_rollout(
    state: State,
    versions: Sequence[ModelVersion],
    *,
    actor: str,
    strategy: str = "",
    rules: Mapping[str, Any] | None = None,
) -> tuple[str, Preview]:
    """Give the strategy, and how ``start_rollout`` would begin. Changes nothing; raises as it does."""
    endpoint, strategy = _course(state, versions, actor=actor, strategy=strategy)
    found = state.rollouts.preview(
        endpoint=endpoint,
        version=versions[0],
        others=versions[1:],
        strategy=strategy,
        rules=rules,
    )
    _refuse_unadmitted(state, versions)
    return strategy, found


def _course(
    state: State, versions: Sequence[ModelVersion], *, actor: str, strategy: str
) -> tuple[str, str]:
    """Give the endpoint and the strategy of a rollout that somebody may start."""
    from keepwell.lifecycle.activation import (
        course_of,  # brings polars, and the server starts without
    )

    require(actor, "rollout", store=state.store)
    if any(version.model != versions[0].model for version in versions):
        raise InvalidInput(
            "The versions are of different models.", todo="Compare versions of one model."
        )
    return course_of(state.context, state.store, versions[0], strategy=strategy)


def _refuse_unadmitted(state: State, versions: Sequence[ModelVersion]) -> None:
    for version in versions:
        refuse_unfit(state, version)


def refuse_unfit(state: State, version: ModelVersion) -> None:
    """Raise Refused unless the version's release and approvals let it answer now."""
    problems = admission_problems(
        version,
        approvals=approvals_needed(version.model, store=state.store),
        store=state.store,
        blobs=state.blobs,
        verifier=state.verifier,
        now=state.clock.now(),
    )
    if problems:
        raise Refused(
            f"{version.label()} may not answer: {'; '.join(problems)}.",
            todo=f"Release and approve it first, or run 'keepwell activate {version.label()}'.",
        )


def steer_rollout(
    state: State, id: str, verb: str, *, actor: str, reason: str, version: int | None = None
) -> Rollout:
    """Pause, resume, promote or roll back a rollout on a person's word.

    Raises NotFound, Refused if they may not, Conflict if it has ended, InvalidInput without a reason.
    """
    require(actor, "rollback" if verb == "rollback" else "rollout", store=state.store)
    need_reason(reason)
    rollouts = state.rollouts
    if verb == "pause":
        return rollouts.pause(id, actor=actor, reason=reason)
    if verb == "resume":
        return rollouts.resume(id, actor=actor, reason=reason)
    if verb == "promote":
        return rollouts.promote(id, actor=actor, reason=reason, version=version)
    found = rollouts.named(id)
    if found.state not in OPEN:
        raise Conflict(
            f"{id} has ended: {found.state}.",
            todo=f"To return to the version before: keepwell rollback {found.endpoint}.",
        )
    rollouts.roll_back(found.endpoint, actor=actor, reason=reason)
    return rollouts.named(id)


def need_reason(reason: str) -> None:
    """Raise InvalidInput unless somebody says why they do what they do."""
    if not reason.strip():
        raise InvalidInput("Why?", todo="Give a reason, in a sentence: it is kept.")


def waits_for(found: Rollout, last: Look) -> str:
    """Say what a rollout under way waits for; nothing of one that has ended."""
    if found.state == "paused":
        return f"it waits for a person: keepwell rollout resume {found.id} --reason ..."
    if found.state != "running":
        return ""
    if found.reason:
        return "it tries again every few seconds; the worker's log says more"
    seen = f"as of {last.rows:,} answers" if last.rows else "no answer of this stage is logged yet"
    return f"{last.next} ({seen})" if last.next else seen


def appraise_version(
    state: State, version: ModelVersion, *, length: Time, endpoint: str = "", way: Way | None = None
) -> Appraisal:
    """Tell what a released version would have earned on the last ``length`` of its endpoint's decisions.

    The time ends a label's delay before the newest decision, so that those that are labelled soon do not stand for
    all. Raises Refused for a version without a release (its artefact would be run unchecked) and for a log that says
    too little, NotFound for the endpoint, InvalidInput without a KPI or usable decisions.
    """
    from keepwell.app.wiring import gain_of
    from keepwell.serving.rollouts.appraisal import appraise
    from keepwell.serving.rollouts.attribution import with_held
    from keepwell.stats.off_policy import EffectiveSampleTooSmall

    store = state.store
    problems = release_problems(version, store=store, blobs=state.blobs, verifier=state.verifier)
    if problems:
        raise Refused(
            f"{version.label()} is not run: {'; '.join(problems)}.",
            todo=f"Run 'keepwell release {version.label()}' first: it looks at what the artefact would run.",
        )
    place = _endpoint_of(state, version, endpoint)
    watermark = store.get(Watermark, place.name)
    until = (watermark.event_time if watermark else state.clock.now()) - place.label_delay
    training = store.get(TrainingSet, version.training_set) if version.training_set else None
    declared = state.project.model(version.model)
    plans = store.find(TrafficPlan, {"endpoint": place.name})
    with tempfile.TemporaryDirectory(prefix="keepwell-appraisal-") as folder:
        try:
            return appraise(
                with_held(state.decisions(place.name, since=until - length, until=until), plans),
                version,
                endpoint=place.name,
                span=(until - length, until),
                predictor=lambda: _predictor(state, version, Path(folder) / "artefact"),
                gain=gain_of(state.project, version.model, metric="kpi"),
                unit=declared.kpi_unit,
                signatures={
                    each.version: each.signature
                    for each in store.find(ModelVersion, {"model": version.model})
                    if each.signature is not None
                },
                plans=plans,
                trained_until=(training.until or training.as_of) if training else None,
                by_unit=bool(place.unit),
                way=way,
            )
        except EffectiveSampleTooSmall as error:
            raise Refused(
                f"The log says too little of {version.label()}: {error}.",
                where=f"endpoint {place.name!r}",
                todo="If the outcome is the same whoever answers, and there are decisions enough: --by replay.",
            ) from error


def _endpoint_of(state: State, version: ModelVersion, name: str) -> Endpoint:
    found = [e for e in state.store.find(Endpoint) if e.model == version.model]
    if not name and len(found) == 1:
        return found[0]
    for each in found:
        if each.name == name:
            return each
    names = [each.name for each in found]
    if not name and names:
        raise InvalidInput(
            f"{len(names)} endpoints serve the model {version.model!r}.",
            todo=f"Name one with --endpoint: {', '.join(names)}.",
        )
    raise NotFound(
        f"No endpoint {name!r} serves the model {version.model!r} yet."
        if name
        else f"No endpoint serves the model {version.model!r} yet.",
        todo=near_miss(name, names) if names else "There is no log before the first activation.",
    )


def _predictor(state: State, version: ModelVersion, folder: Path) -> Predictor:
    """Load the version as a gateway does: unpacked anew, each file checked against its digest."""
    from keepwell.training.artefacts import unpack_artefact
    from keepwell.training.predictors import load_predictor

    return load_predictor(unpack_artefact(version.artefact, folder, blobs=state.blobs))[0]
