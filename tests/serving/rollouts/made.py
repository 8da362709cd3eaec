"""Observations and states made from numbers alone, for controllers that are asked without a log."""

import numpy as np

from keepwell.core.clock import DAY
from keepwell.core.records.traffic import Arm
from keepwell.serving.rollouts.observations import Observations
from keepwell.serving.rollouts.strategy import State

MINUTE = 60_000_000
NAMES = ("challenger", "challenger-2", "champion")
START = 20_000 * DAY


def arm(name, version):
    return Arm(name=name, model="buys", version=version, artefact=f"sha256:{version}")


def state_of(rules, *, challengers=1, memory=None, **more):
    given = {
        "champion": arm("champion", 1),
        "challengers": tuple(arm(NAMES[k], k + 2) for k in range(challengers)),
        "rules": rules, "memory": memory or {}, "plan": 1, "unit": "user", "task": "binary",
        "gain": lambda _, outcomes: outcomes,
    }  # fmt: skip
    return State(**(given | more))


def seen_of(
    arms,
    outcome,
    *,
    rng,
    output=None,
    latency=None,
    errors=None,
    feature=None,
    units=None,
    plan=None,
    share=0.5,
):
    """One decision a unit and a minute; arrays of shape (n,), ``arms`` as places in NAMES."""
    n = len(arms)
    status = np.zeros(n, dtype=np.int64) if errors is None else np.where(errors, 2, 0)
    identity = rng.permutation(n).astype(np.uint64)
    propensity = np.where(np.asarray(arms) == 2, 1 - share, share)
    time = START + np.arange(n, dtype=np.int64) * MINUTE
    return Observations(
        names=NAMES, time=time, arrived=time, decision=identity, unit=identity if units is None else units,
        arm=np.asarray(arms, dtype=np.int64), by=np.asarray(arms, dtype=np.int64),
        plan=np.ones(n, dtype=np.int64) if plan is None else np.asarray(plan, dtype=np.int64),
        status=status, mirror=np.zeros(n, dtype=np.bool_), placed=np.zeros(n, dtype=np.bool_),
        propensity=propensity, latency=np.full(n, 0.01) if latency is None else np.asarray(latency),
        output=np.full(n, 0.5) if output is None else np.asarray(output, dtype=np.float64), counts=status < 2,
        outcome=np.asarray(outcome, dtype=np.float64),
        features=np.zeros((n, 0)) if feature is None else np.asarray(feature, dtype=np.float64).reshape(n, 1),
        groups=np.zeros((n, 0), dtype=np.uint64), watermark=int(time[-1]) + MINUTE if n else 0,
    )  # fmt: skip


def parted(n, rng, *, share=0.5):
    """Arms by chance: places of the challenger and the champion in NAMES."""
    return np.where(rng.random(n) < share, 0, 2)
