"""What tests that may be looked at after every event share: the evidence at their best look, and what it says."""

import math
from dataclasses import replace
from typing import TypeVar


class Anytime:
    """A test whose evidence exceeds 1/alpha ever with chance at most alpha, if there is nothing to find.

    The state is that of the subclass, a frozen dataclass with these two fields.
    """

    alpha: float
    peak_log_evidence: float

    @property
    def log_evidence(self) -> float:
        """Log of the evidence now, in nats: above 0 speaks for what is looked for."""
        raise NotImplementedError

    @property
    def p_value(self) -> float:
        """The anytime p-value: least alpha at which it would have been found at some look."""
        return min(1.0, math.exp(-self.peak_log_evidence))

    @property
    def _found(self) -> bool:
        """Whether it was found at some look."""
        return self.peak_log_evidence >= -math.log(self.alpha)


T = TypeVar("T", bound=Anytime)


def looked(test: T) -> T:
    """Give a test's state after a look at it."""
    peak = max(test.peak_log_evidence, test.log_evidence)
    return replace(test, peak_log_evidence=peak)  # type: ignore[type-var]
