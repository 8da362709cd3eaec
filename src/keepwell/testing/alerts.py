"""What every channel must do. Subclass ``ChannelContract`` and give its three fixtures."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from keepwell.core.errors import Unavailable
from keepwell.core.ports.alerts import Channel
from keepwell.core.records.watching import Alert

ALERT = Alert(
    id="alert-1",
    endpoint="flight-delay",
    model="flight-delay",
    version=3,
    monitor="log_loss",
    severity="critical",
    message='Loss 0.51 is over its limit 0.43, "wörse" than the baseline.',
    event_time=1_700_000_000_000_000,
    opened=1_700_000_001_000_000,
)
BOUND = 30.0
"""Seconds within which a channel must have given up."""


class ChannelContract:
    """The promises of ``keepwell.core.ports.alerts``."""

    @pytest.fixture
    def channel(self) -> Channel:
        """Give a channel named ``ops`` whose receiver takes what is sent."""
        message = "Give the fixture 'channel' in your subclass."
        raise TypeError(message)

    @pytest.fixture
    def received(self, channel: Channel) -> Callable[[], list[str]]:
        """Give a function that lists what ``channel``'s receiver has got, as texts, in order."""
        message = f"Give the fixture 'received' of {channel.name} in your subclass."
        raise TypeError(message)

    @pytest.fixture
    def deaf(self) -> Channel:
        """Give a channel whose receiver accepts the connection and then never acknowledges anything."""
        message = "Give the fixture 'deaf' in your subclass."
        raise TypeError(message)

    def test_it_is_called_as_it_was_declared(self, channel: Channel) -> None:
        assert channel.name == "ops"

    def test_an_alert_arrives_whole_and_its_acknowledgement_is_told(
        self, channel: Channel, received: Callable[[], list[str]]
    ) -> None:
        assert channel.send(ALERT) != ""
        assert len(received()) == 1
        for part in (ALERT.id, ALERT.endpoint, ALERT.monitor, ALERT.severity, "0.51"):
            assert part in received()[0]

    def test_each_alert_arrives_once(
        self, channel: Channel, received: Callable[[], list[str]]
    ) -> None:
        for _ in range(3):
            channel.send(ALERT)
        assert len(received()) == 3

    def test_a_receiver_that_does_not_acknowledge_is_unavailable_in_bounded_time(
        self, deaf: Channel
    ) -> None:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            deaf.send(ALERT)
        assert time.monotonic() - began < BOUND
