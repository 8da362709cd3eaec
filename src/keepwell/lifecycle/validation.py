"""What a version's artefact keeps for its judges: validation rows, golden rows, the package."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import numpy as np
import polars as pl

from keepwell.checks.model.validation import ValidationRows
from keepwell.core.errors import Corrupt
from keepwell.core.ports.blobs import Blobs
from keepwell.core.records.models import Artefact, ModelVersion, Package
from keepwell.data.decisions import LABEL, SLICE
from keepwell.data.features import TIME
from keepwell.training.artefacts import read_artefact, read_package
from keepwell.training.train import BASELINE, PREDICTION


def read_parts(version: ModelVersion, *, blobs: Blobs) -> tuple[Artefact, Package]:
    """Give the manifest and the package of a version. Raises NotFound, Corrupt."""
    artefact = read_artefact(version.artefact, blobs=blobs)
    return artefact, read_package(artefact, blobs=blobs)


def read_validation(version: ModelVersion, *, blobs: Blobs) -> tuple[ValidationRows, pl.DataFrame]:
    """Give the rows that training kept for judging, and the whole table with the features."""
    artefact, package = read_parts(version, blobs=blobs)
    if "validation.parquet" not in artefact.files:
        raise Corrupt("The artefact keeps no validation rows.", where=version.label())
    table = pl.read_parquet(io.BytesIO(blobs.get(artefact.files["validation.parquet"])))
    rows = ValidationRows(
        task=package.signature.task,
        time=table.get_column(TIME).to_numpy(),
        label=table.get_column(LABEL).to_numpy(),
        prediction=np.array(table.get_column(PREDICTION).to_list(), dtype=np.float64),
        baseline=np.array(table.get_column(BASELINE).to_list(), dtype=np.float64),
        slices={
            name.removeprefix(SLICE): table.get_column(name).to_numpy().astype(object)
            for name in table.columns
            if name.startswith(SLICE)
        },
    )
    return rows, table


def as_request_rows(values: list[list[Any]], package: Package) -> list[dict[str, Any]]:
    """Turn rows in the signature's order into what an application sends."""
    return [dict(zip(package.signature.names, row, strict=True)) for row in values]


def read_golden(
    version: ModelVersion, *, blobs: Blobs
) -> tuple[list[dict[str, Any]], list[Any], float]:
    """Give golden rows as requests, the predictions that they must get, and the tolerance."""
    artefact, package = read_parts(version, blobs=blobs)
    try:
        golden = msgspec.json.decode(blobs.get(artefact.files["golden.json"]))
        return as_request_rows(golden["rows"], package), golden["predictions"], golden["tolerance"]
    except (KeyError, msgspec.DecodeError) as error:
        raise Corrupt(
            f"The artefact's golden rows cannot be read: {error}.", where=version.label()
        ) from error
