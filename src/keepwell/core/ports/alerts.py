"""Channels that bring an alert to somebody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from keepwell.core.records.watching import Alert


class Channel(Protocol):
    """One way to reach people: a webhook, a mailbox. May be slow; must give up in bounded time."""

    @property
    def name(self) -> str:
        """Name as declared in the project, for the delivery's record."""
        ...

    def send(self, alert: Alert) -> str:
        """Deliver, and say how it was acknowledged. Raises Unavailable if it was not."""
        ...
