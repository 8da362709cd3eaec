"""The intake: which of the requests that wait can be answered in time, by the pace learned for each endpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from keepwell.serving.desk.asks import Ask, Work
from keepwell.serving.desk.codec import JSON

MAX_PENDING_BYTES = 128 * 1024 * 1024
"""Bodies that may wait in one worker: eight of the largest."""
ALPHA = 0.05
"""Weight of the newest tick: the last twenty count for about two thirds."""
SPREAD = 0.1
"""Ticks whose sizes differ less than this, relative to their mean, tell nothing of what more would cost."""
QUICK_SECONDS = 0.002
SKIPPED = 15
"""Where ticks are quick only one of sixteen is measured: to measure each would cost a request of its own 5%."""
TRY_SECONDS = 1.0
"""A request that seems too slow for its deadline is computed anyhow this often: a pace never measured never mends."""


class Pace(msgspec.Struct):
    """What a tick costs at one endpoint: ``fixed`` seconds and ``slope`` more a byte of its requests.

    Least squares with exponential forgetting. Rows are known only once a body is read, which is a good part of
    its cost; bytes are known before, and at one endpoint they grow with the rows.
    """

    ticks: int = 0
    size: float = 0.0
    seconds: float = 0.0
    variance: float = 0.0
    covariance: float = 0.0
    fixed: float = 0.0
    slope: float = 0.0
    at: float = 0.0
    """When it was measured last."""
    skip: int = 0
    """Ticks until the next one that is measured."""

    def learn(self, size: int, seconds: float, now: float) -> None:
        """Take in one tick. Without ticks of different sizes all of the cost is put on the bytes."""
        self.ticks += 1
        weight = max(ALPHA, 1 / self.ticks)
        more, longer = size - self.size, seconds - self.seconds
        self.size += weight * more
        self.seconds += weight * longer
        self.variance = (1 - weight) * (self.variance + weight * more * more)
        self.covariance = (1 - weight) * (self.covariance + weight * more * longer)
        self.slope = mean = self.seconds / self.size
        if self.variance > (SPREAD * self.size) ** 2:
            self.slope = min(max(self.covariance / self.variance, 0.0), mean)
        self.fixed = self.seconds - self.slope * self.size
        self.at = now
        self.skip = SKIPPED if self.seconds < QUICK_SECONDS else 0


class Intake:
    """Plans ticks of one worker. A request that nothing is ahead of is always taken, so that paces stay true."""

    def __init__(self, max_wait: float = 0.0) -> None:
        self.limit = max_wait or math.inf
        self.paces: dict[str, Pace] = {}
        self.slope = 0.0
        """Of the dearest endpoint."""
        self.fixed = 0.0
        """Of all endpoints together."""

    def wants(self, endpoint: str, seconds: float) -> bool:
        """Tell whether a tick is to be measured: every slow one, some of the quick ones."""
        pace = self.paces.get(endpoint)
        if pace is None or not pace.skip or seconds > QUICK_SECONDS:
            return True
        pace.skip -= 1
        return False

    def learn(self, endpoint: str, size: int, seconds: float, now: float) -> None:
        """Take in what one tick took at one endpoint."""
        pace = self.paces.get(endpoint)
        if pace is None:
            pace = self.paces[endpoint] = Pace()
        fixed, slope = pace.fixed, pace.slope
        pace.learn(size or 1, seconds, now)
        self.fixed += pace.fixed - fixed
        if pace.slope >= self.slope:
            self.slope = pace.slope
        elif slope == self.slope:
            self.slope = max(each.slope for each in self.paces.values())

    def plan(self, work: Sequence[Work], now: float) -> tuple[list[Work], list[Work], list[Work]]:
        """Part what waits into what is computed now, what comes behind it, and what was refused (in place).

        Nearer deadlines go first. What has a deadline gets no
        company that would make it late; the rest comes behind, in a tick of its own.
        """
        order = sorted(work, key=lambda each: each[0].deadline or math.inf)
        batch: list[Work] = []
        later: list[Work] = []
        refused: list[Work] = []
        seen: set[str] = set()
        ahead = 0.0
        tightest = math.inf
        for each in order:
            ask: Ask = each[0]
            pace = self.paces.get(ask.endpoint)
            own = 0.0
            if pace is not None:
                own = pace.slope * (ask.size or len(ask.body)) + (
                    0 if ask.endpoint in seen else pace.fixed
                )
            left = ask.deadline - now if ask.deadline else math.inf
            waited = now - ask.began if ask.postponed else 0.0
            if 0 < left < ahead + own and (
                ahead or (pace is not None and now - pace.at < TRY_SECONDS)
            ):
                refuse(
                    ask,
                    "deadline",
                    ahead,
                    f"It would take about {ahead + own:.3g} s, and there are {left:.3g} s left.",
                )
                refused.append(each)
                continue
            if ahead and ahead + waited > self.limit:
                refuse(
                    ask,
                    "busy",
                    ahead,
                    f"The worker is busy: about {ahead + waited:.3g} s would pass before this request's turn.",
                )
                refused.append(each)
                continue
            seen.add(ask.endpoint)
            if batch and (later or ahead + own > min(tightest, left)):
                ask.postponed = True
                later.append(each)
            else:
                batch.append(each)
                tightest = min(tightest, left)
            ahead += own
        return batch, later, refused


def refuse(ask: Ask, shed: str, ahead: float, message: str) -> None:
    """Refuse a request that was not begun; it may come again once what is ahead of it is done."""
    ask.refuse(503, message)
    ask.shed = shed
    ask.content = b"%s\r\nretry-after: %d" % (JSON, min(max(math.ceil(ahead), 1), 60))
