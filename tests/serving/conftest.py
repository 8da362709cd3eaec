"""One gateway with two workers for the tests that only ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving import gateways
from tests.serving.models import Doubling, FailingOnNegative, TooFew


@pytest.fixture(scope="session", autouse=True)
def _own_modules_are_found() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        yield


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gateways.Gateway]:
    with gateways.running(tmp_path_factory.mktemp("gateway"), workers=2) as made:
        shelf = made.shelf
        plain = gateways.linear(shelf, 10.0)
        other = gateways.linear(shelf, 20.0)
        failing = gateways.native(shelf, FailingOnNegative())
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
            gateways.endpoint("few", arms=[gateways.arm(4, gateways.native(shelf, TooFew()))]),
            gateways.endpoint("none", arms=[], refused="m/1: its evidence is gone"),
        )  # fmt: skip
        yield made
