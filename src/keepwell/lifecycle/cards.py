"""Model cards (Mitchell et al. 2019, arXiv:1810.03993): one page a version, written from rows, never by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepwell.core.admission import release_of
from keepwell.core.clock import iso
from keepwell.core.digest import short
from keepwell.core.records.data import TrainingSet
from keepwell.core.records.lifecycle import StepResult

if TYPE_CHECKING:
    from keepwell.core.records.models import ModelVersion
    from keepwell.lifecycle.context import Context


def write_card(context: Context, version: ModelVersion) -> str:
    """Give the model card of a version as Markdown."""
    declared = context.project.model(version.model)
    lines = [
        f"# {version.label()}",
        "",
        f"**Purpose.** {declared.purpose or 'not stated'}",
        "",
        f"**Owner.** {declared.owner or 'not stated'}  ",
        f"**Author.** {version.author}  ",
        f"**Risk tier.** {declared.risk}  ",
        f"**Task.** {declared.task}; label `{declared.label}`  ",
        f"**Candidate.** {version.candidate}  ",
        f"**Artefact.** `{short(version.artefact)}`  ",
        "",
        "## Inputs",
        "",
    ]
    if version.signature is not None:
        lines += ["| column | type | may be missing | range seen |", "|---|---|---|---|"]
        for column in version.signature.inputs:
            seen = (
                f"{column.low:g} to {column.high:g}"
                if column.low is not None and column.high is not None
                else f"{len(column.categories)} categories"
                if column.categories
                else ""
            )
            missing = "yes" if column.nullable else "no"
            lines.append(f"| {column.name} | {column.dtype} | {missing} | {seen} |")
    training = context.store.get(TrainingSet, version.training_set)
    if training is not None:
        since = iso(training.since) if training.since is not None else "the beginning"
        until = iso(training.until) if training.until is not None else iso(training.as_of)
        lines += [
            "",
            "## Training data",
            "",
            (
                f"{training.rows:,} decisions from {since} to {until}, as known at "
                f"{iso(training.as_of)}; training set `{short(training.content)}`."
            ),
        ]
    lines += ["", "## What the release found", ""]
    release = release_of(version, store=context.store)
    steps = (
        context.store.find(StepResult, {"procedure": release.id}, order=["number"])
        if release is not None
        else []
    )
    for step in steps:
        lines.append(f"### {step.number}. {step.step}: {step.verdict}")
        lines.append("")
        lines += [
            f"- {result.check}: **{result.verdict}**. {result.message}" for result in step.results
        ]
        lines.append("")
    if not steps:
        lines.append("No release has run.")
    return "\n".join(lines).rstrip() + "\n"
