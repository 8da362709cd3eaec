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
    by_unit = whole.select("unit", "who").with_columns(gain=pl.Series(gain))
    by_unit = by_unit.group_by("unit", "who").agg(pl.col("gain").sum())
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


def main():
    """Print the units of each arm, the estimate and its bounds as JSON."""
    log, question = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
    values = units(log, question)
    control, treatment = (values[name] for name in question["arms"])
    mean, low, high = interval(
        treatment, control, alpha=question["alpha"], tuned_for=question["tuned_for"]
    )
    sys.stdout.write(
        json.dumps(
            {
                "judged": {name: len(found) for name, found in values.items()},
                "mean": mean,
                "low": low,
                "high": high,
            }
        )
    )


if __name__ == "__main__":
    main()
