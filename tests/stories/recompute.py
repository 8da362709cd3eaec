"""Computes an A/B verdict again from the compacted log alone, with numpy and polars and nothing of Keepwell.

It takes the manifest's word for which Parquet files count, and from the signed evidence only the question: how far the
log was read, from which plan on, which arms, which error rate. The interval is found by bisection on the martingale of
the paper (Waudby-Smith et al. 2021, 2103.06476; in its t form), not by the closed form that the product uses.

    python recompute.py LOG_FOLDER QUESTION.json
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import polars as pl


def read(log, kind, question):
    """Give the records of a kind at the endpoint, up to where the log had been read."""
    folder = log / "compacted"
    manifest = json.loads((folder / "manifest.json").read_text())
    tables = [
        pl.read_parquet(folder / part["path"], hive_partitioning=False)
        for part in manifest["parts"]
        if part["kind"] == kind and part["endpoint"] == question["endpoint"]
    ]
    names = set.intersection(*(set(table.columns) for table in tables))
    rows = pl.concat([table.select(sorted(names)) for table in tables])
    until = pl.DataFrame(
        list(question["cursor"].items()), schema={"segment": pl.String, "until": pl.Int64}, orient="row"
    )  # fmt: skip
    return rows.join(until, on="segment").filter(pl.col("end") <= pl.col("until"))


def units(log, question):
    """Give what each unit of the two arms was worth: its first decision's loss, once its label has had time to come."""
    asked = read(log, "predictions", question).filter(pl.col("plan") >= question["since_plan"])
    watermark = asked.filter(~pl.col("mirror")).get_column("time").max()
    known = read(log, "outcomes", question).filter(pl.col("value").is_not_nan())
    known = known.sort("time", "arrived").unique("id", keep="first", maintain_order=True)
    drawn = asked.filter(
        ~pl.col("mirror") & (pl.col("cohort") == "") & (pl.col("status") != "refused")
    )
    drawn = drawn.with_columns(
        who=pl.when(pl.col("chosen") == "").then(pl.col("arm")).otherwise(pl.col("chosen"))
    )
    of = drawn.group_by("unit").agg(start=pl.col("time").min(), arms=pl.col("who").n_unique())
    # Of one id the first answer counts, and an error only if there was no other.
    answered = drawn.filter(pl.col("status") != "error").sort("arrived")
    answered = answered.unique("id", keep="first", maintain_order=True)
    whole = answered.join(of.filter(pl.col("arms") == 1), on="unit")
    whole = whole.filter(pl.col("start") + question["label_delay"] <= watermark)
    # A unit is judged by what it asked at its first moment.
    whole = whole.filter(pl.col("time") == pl.col("start"))
    whole = whole.join(known.select("id", "value"), on="id")
    p = whole.get_column("output").cast(pl.Float64).to_numpy().clip(1e-15, 1 - 1e-15)
    y = whole.get_column("value").to_numpy()
    gain = y * np.log(p) + (1 - y) * np.log1p(-p)
    if question.get("gain") == "squared":
        gain = -((p - y) ** 2)
    by_unit = whole.select("unit", "who", "start").with_columns(gain=pl.Series(gain))
    by_unit = by_unit.group_by("unit", "who", "start").agg(pl.col("gain").sum()).sort("start")
    return {
        name: by_unit.filter(pl.col("who") == name).get_column("gain").to_numpy()
        for name in question["arms"]
    }


def where(grows, low, high):
    """Find where a growing function passes zero."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if grows(middle) < 0 else (low, middle)
    return low


def best_precision(alpha, tuned_for):
    """Find the mixture's precision c that makes the interval shortest at so many units.

    With y = n / c + 1 its square is proportional to y / (y - 1) log(y / alpha^2), least where the logarithm is y - 1.
    """
    y = where(lambda y: y - 1 - math.log(y / alpha**2), 1.0, 1e6)
    return tuned_for / (y - 1)


def interval(treatment, control, *, alpha, tuned_for):
    """Give the difference of means and the bounds at which the martingale reaches 1 / alpha."""
    estimate = float(treatment.mean() - control.mean())
    error = math.sqrt(treatment.var(ddof=1) / len(treatment) + control.var(ddof=1) / len(control))
    n = len(treatment) + len(control)
    c = best_precision(alpha, tuned_for)

    def log_martingale(away):
        share = n * away**2 / (n * error**2 + away**2)
        return -n / 2 * math.log1p(-share / (n + c)) - math.log((n + c) / c) / 2

    radius = where(lambda away: log_martingale(away) + math.log(alpha), 0.0, 1e6 * error)
    return estimate, estimate - radius, estimate + radius


def chance_beyond(nodes, mass, since, until, critical):
    """Give the chance to lie beyond the critical z value at the next look, on either side."""
    step, bound = math.sqrt(until - since), critical * math.sqrt(until)
    tail = [
        math.erfc((bound - x) / step / 2**0.5) + math.erfc((bound + x) / step / 2**0.5)
        for x in nodes
    ]
    return float(mass @ np.array(tail)) / 2


def boundaries(shares, alpha):
    """Find the critical z values by which alpha is spent as O'Brien and Fleming would (Lan and DeMets 1983).

    The density of what has not crossed is carried from look to look on an even grid, by Simpson's rule.
    """
    quantile = where(lambda z: math.erf(z / 2**0.5) - (1 - alpha / 2), 0.0, 10.0)
    spent = [2 * math.erfc(quantile / math.sqrt(share) / 2**0.5) for share in shares]
    nodes, mass, since, critical = np.zeros(1), np.ones(1), 0.0, []
    for k, share in enumerate(shares):
        newly = spent[k] - (spent[k - 1] if k else 0.0)
        z = where(lambda z: newly - chance_beyond(nodes, mass, since, share, z), 0.0, 9.0)  # noqa: B023
        critical.append(z)
        after = np.linspace(-z, z, 801) * math.sqrt(share)
        weight = np.ones(801)
        weight[1:-1:2], weight[2:-1:2] = 4, 2
        weight *= (after[1] - after[0]) / 3
        away = (after[:, None] - nodes) / math.sqrt(share - since)
        density = np.exp(-(away**2) / 2) @ mass / math.sqrt(2 * math.pi * (share - since))
        nodes, mass, since = after, density * weight, share
    return critical


def at_horizon(treatment, control, question):
    """Look at the first so many units of each arm as planned, until one look says that they differ."""
    planned = question["planned"]
    critical = boundaries([units / planned[-1] for units in planned], question["alpha"])
    for look, (units, limit) in enumerate(zip(planned, critical, strict=True), 1):
        ours, theirs = treatment[:units], control[:units]
        if min(len(ours), len(theirs)) < units:
            break
        mean = float(ours.mean() - theirs.mean())
        error = math.sqrt(ours.var(ddof=1) / units + theirs.var(ddof=1) / units)
        told = {"looks": look, "mean": mean, "z": mean / error, "critical": limit}
        told |= {"low": mean - limit * error, "high": mean + limit * error}
        if abs(mean / error) >= limit:
            break
    return told


def main():
    """Print the units of each arm, the estimate and its bounds as JSON."""
    log, question = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    values = units(log, question)
    control, treatment = (values[name] for name in question["arms"])
    if "planned" in question:
        told = at_horizon(treatment, control, question)
    else:
        mean, low, high = interval(
            treatment, control, alpha=question["alpha"], tuned_for=question["tuned_for"]
        )
        told = {"mean": mean, "low": low, "high": high}
    judged = {name: len(found) for name, found in values.items()}
    sys.stdout.write(json.dumps({"judged": judged, **told}))


if __name__ == "__main__":
    main()
