"""Does the artefact say everything that is needed to trust and to rebuild it?"""

from __future__ import annotations

from keepwell.core.digest import is_digest
from keepwell.core.records.evidence import CheckResult
from keepwell.core.records.models import Artefact, Package

NEEDED = ("package.json", "golden.json", "validation.parquet", "MLmodel")


def manifest_complete(artefact: Artefact, package: Package) -> CheckResult:
    """Are all parts there: files, signature, environment, code, training set, and the proof of equality?"""
    problems = [f"{name} is not in the artefact" for name in NEEDED if name not in artefact.files]
    if not package.signature.inputs:
        problems.append("the signature has no inputs")
    if not package.requirements:
        problems.append("the environment is not recorded")
    problems += [
        f"{name} is not recorded"
        for name in ("code", "training_set")
        if not is_digest(getattr(package, name))
    ]
    if not package.equal_rows:
        problems.append("the predictor was not proved equal to the estimator on any row")
    return CheckResult(
        check="manifest complete",
        verdict="fail" if problems else "pass",
        message="; ".join(problems)
        if problems
        else f"{len(artefact.files)} files; predictor '{package.predictor}' equal on"
        f" {package.equal_rows:,} rows within {package.largest_difference:.2g}",
        measured={"files": len(artefact.files), "equal_rows": package.equal_rows},
    )
