"""Says in words what has happened: data drift, concept drift, business drift or trouble with the traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from keepwell.core.records.watching import Measurement

Cause = Literal["data drift", "concept drift", "business drift", "decay", "traffic"]
EXPLAINED = 0.5
"""Share of a rise in loss that the inputs must explain to be named its cause."""
CLEAR = 2.0
"""Standard errors beyond the limit at which a part of the rise counts as shown."""
NAMED = 3


def diagnose(
    kind: str, alarms: Sequence[Measurement], window: Mapping[str, Measurement]
) -> tuple[Cause, str]:
    """Name the cause of a kind's alarms and say why.

    ``window`` holds all measurements of this version and window by monitor, those of the data part too.
    """
    drifted = sorted(
        (m for m in window.values() if m.monitor.startswith("drift:") and m.state == "alarm"),
        key=lambda m: -(m.value or 0.0),
    )
    if kind == "data":
        return "data drift", f"data drift: {_features(drifted)}"
    if kind == "prediction":
        moved = "the inputs moved too" if drifted else "no input moved as much"
        return "data drift", f"prediction drift ({alarms[0].message}); {moved}"
    if kind == "estimate":
        moved = _against(alarms[0])
        return (
            "data drift",
            f"the inputs moved to where the model is less sure: {moved}, before any label",
        )
    if kind == "traffic":
        return "traffic", "; ".join(m.message for m in alarms)
    if kind == "business":
        return _business(alarms[0], window)
    return _performance(alarms, window, drifted)


def _business(value: Measurement, window: Mapping[str, Measurement]) -> tuple[Cause, str]:
    losing = value.value is not None and value.value < 0
    what = "it now earns less than the baseline rule" if losing else "its gain has fallen"
    numbers = f"{value.message}, {value.reference or 0:+.4g} at its release"
    if any(m.kind == "performance" and m.state == "alarm" for m in window.values()):
        return "decay", f"{what}: {numbers}; its predictions are worse as well"
    return (
        "business drift",
        f"business drift: {what}: {numbers}; its predictions are as good as before, what they are worth is not",
    )


def _performance(
    alarms: Sequence[Measurement],
    window: Mapping[str, Measurement],
    drifted: Sequence[Measurement],
) -> tuple[Cause, str]:
    numbers = ", ".join(_against(m) for m in alarms[:NAMED])
    inputs = f" The inputs that moved: {_features(drifted)}." if drifted else " No input moved."
    loss, estimated = window.get("log_loss"), window.get("estimated_log_loss")
    unexplained, calibration = window.get("unexplained_log_loss"), window.get("calibration")
    if loss is None or estimated is None or unexplained is None:
        cause: Cause = "data drift" if drifted else "concept drift"
        why = (
            "the inputs moved as well, so part of it may be theirs"
            if drifted
            else "the inputs did not move, so what they mean has changed"
        )
        return cause, f"{cause}: {numbers}; {why}.{inputs if drifted else ''}"
    rise = (loss.value or 0.0) - (loss.reference or 0.0)
    expected = (estimated.value or 0.0) - (estimated.reference or 0.0)
    off = calibration is not None and calibration.state == "alarm"
    shown = unexplained.state == "alarm" or (unexplained.score or 0.0) > CLEAR
    parted = f"of a change of {rise:+.3f} in log loss the inputs explain {expected:+.3f}"
    if shown or off or expected < EXPLAINED * rise:
        return (
            "concept drift",
            f"concept drift: {numbers}; {parted}, so what they mean has changed.{inputs}",
        )
    return "data drift", f"decay by data drift: {numbers}; {parted}.{inputs}"


def _against(measured: Measurement) -> str:
    text = f"{measured.monitor} {measured.value:.3f}"
    if measured.reference is not None:
        text += f" against {measured.reference:.3f}"
    return text


def _features(drifted: Sequence[Measurement]) -> str:
    names = [f"{m.monitor.removeprefix('drift:')} (PSI {m.value:.2f})" for m in drifted]
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest
