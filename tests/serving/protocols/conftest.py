"""One gateway that speaks all protocols, for the tests that only ask, and another with a single endpoint."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.serving import gateways
from tests.serving.models import Doubling, FailingOnNegative, Lengths, Three

from keepwell.core.records.data import Column
from keepwell.core.records.models import Signature

# Run by the interpreter that has MLflow, never imported here.
collect_ignore = ["mlflow_session.py"]

WORDS = Signature(
    inputs=(
        Column(name="word", dtype="string", nullable=True),
        Column(name="number", dtype="int64", nullable=True),
        Column(name="flag", dtype="bool", nullable=True),
    ),
    task="regression",
)
KINDS = Signature(
    inputs=(Column(name="p", dtype="float64"),), task="multiclass", classes=("a", "b", "c")
)


@pytest.fixture(scope="session")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateways.Gateway]:
    with gateways.running(tmp_path_factory.mktemp("speaking"), workers=2, grpc=True) as made:
        shelf = made.shelf
        plain = gateways.linear(shelf, 10.0)
        other = gateways.linear(shelf, 20.0)
        failing = gateways.native(shelf, FailingOnNegative())
        words = gateways.native(shelf, Lengths(), WORDS, [["abc", 1.0, True]])
        kinds = gateways.native(shelf, Three(), KINDS, [[0.5]])
        made.publish(
            gateways.endpoint("e", arms=[gateways.arm(1, plain)]),
            gateways.endpoint(
                "two", arms=[gateways.arm(1, plain, 5000), gateways.arm(2, other, 5000)], time="at", plan=7
            ),
            gateways.endpoint("mirrored", arms=[gateways.arm(1, plain)], mirrors=(gateways.arm(3, failing, 0),)),
            gateways.endpoint("failing", arms=[gateways.arm(3, failing)]),
            gateways.endpoint(
                "safe", arms=[gateways.arm(1, gateways.native(shelf, Doubling()), 0), gateways.arm(3, failing)], fallback="v1"
            ),
            gateways.endpoint("words", arms=[gateways.arm(1, words)]),
            gateways.endpoint("kinds", arms=[gateways.arm(5, kinds)], unit=""),
            gateways.endpoint("with space", arms=[gateways.arm(1, plain)]),
            gateways.endpoint("none", arms=[], refused="m/1: its evidence is gone"),
        )  # fmt: skip
        yield made


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateways.Gateway]:
    with gateways.running(tmp_path_factory.mktemp("single")) as made:
        made.publish(
            gateways.endpoint("only", arms=[gateways.arm(1, gateways.linear(made.shelf, 10.0))])
        )
        yield made
