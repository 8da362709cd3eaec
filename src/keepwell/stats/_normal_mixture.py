"""The normal mixture behind the confidence sequences: its best width, and the limit it sets."""

import math
from functools import lru_cache
from typing import Literal

from scipy import special

Side = Literal["both", "lower", "upper"]
"""Which bounds: both, or only one (tighter), the other being infinite."""


@lru_cache(maxsize=64)  # the same at every look
def precision(alpha: float, tuned_for: float, side: Side) -> float:
    """Find the mixture's precision c = 1/rho^2 that makes the radius least at n = tuned_for.

    The minimum of (y / (y - 1)) log(y / a^2) over y = n rho^2 + 1 is at y = -W_{-1}(-a^2 / e).
    """
    a = alpha if side == "both" else min(2 * alpha, 0.999)
    y = -float(special.lambertw(-(a**2) / math.e, -1).real)
    return tuned_for / (y - 1)


def factor(n: int, alpha: float, c: float, side: Side) -> float:
    """Log of the ratio V / (V - S^2 / (n + c)) at which the martingale reaches its limit.

    The martingale is ratio^(n/2) / y, y = sqrt((n + c) / c). Two-sided its limit is 1 / alpha. The
    one-sided one is that of the half-normal mixture: it is at least 2 M - 1/y where the mean errs
    upwards (the other half is then at most 1/y), so ratio^(n/2) need only reach
    y / (2 alpha) + 1/2.
    """
    y = math.sqrt((n + c) / c)
    limit = y / alpha if side == "both" else y / (2 * alpha) + 0.5
    return 2 / n * math.log(limit)


def log_evidence(n: int, share: float, c: float, *, side: Side, away: float) -> float:
    """Log of the martingale itself; `share` = S^2 / V, at most n, `away` the sign of the deviation.

    One-sided it is the lower bound 2 M - 1/y of the half-normal mixture that `factor` uses, and
    nothing (-inf) where the deviation is to the other side: less than the truth, so still valid.
    """
    log_y = math.log((n + c) / c) / 2
    found = -n / 2 * math.log1p(-share / (n + c)) - log_y
    if side == "both":
        return found
    if away <= 0 if side == "lower" else away >= 0:
        return -math.inf
    # log(2 e^found - e^-log_y)
    inside = -math.expm1(-log_y - math.log(2) - found)
    return math.log(2) + found + math.log(inside) if inside > 0 else -math.inf
