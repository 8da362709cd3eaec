"""Whatever a project's source, training functions, baseline or KPI do wrong ends training in words."""

import json
import re

import msgspec
import pytest
from tests.app.projects import LABEL
from tests.stories.projects import keepwell

from keepwell.core.clock import moment
from keepwell.core.records.data import TrainingSet
from keepwell.core.records.evidence import CheckResult
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.work import Work
from keepwell.lifecycle import release
from keepwell.lifecycle.procedures import StepDeclaration

TRAIN = ("train", "--as", "me", "--candidate", "linear")
FIT = "    return make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression(**params)).fit(X, y)\n"
ROWS = """    return rows.with_row_index("patient").with_columns(
        day.alias("seen"),
        (day + pl.duration(days=2)).alias("diagnosed"),
        pl.Series("malignant", 1.0 - data.target),
    )
"""
BASELINE = '    return 1 / (1 + np.exp(-(X["mean radius"].to_numpy() - 15) / 2))\n'
KPI = "    return np.where(chance > 80 / 2000, -80.0, -2000.0 * malignant)\n"


def then(step):
    """The source's rows, and one step more."""
    return ROWS.replace("    return rows", "    made = rows") + f"    return made{step}\n"


@pytest.mark.parametrize(
    ("new", "says"),
    [
        (then(".head(0)"), r"source 'patients': .*0 rows"),
        (then(".head(20)"), r"Only 20 labelled decisions.*50 are needed.*Widen the window"),
        (then('.drop("worst radius")'), r"'worst radius'.*source 'patients'.*Did you mean 'worst radius|'worst radius'"),
        (then('.drop("seen")'), r"source 'patients': The timestamp column 'seen' is not there"),
        (then('.drop("diagnosed")'), r"label's time column 'diagnosed'"),
        (then('.drop("malignant")'), r"model 'tumour': Its label column 'malignant' is not in the source 'patients'"),
        (then('.with_columns(pl.col("seen").cast(pl.String))'), r"timestamp column 'seen' holds String, not times.*to_datetime"),
        (then('.with_columns(pl.lit("ill").alias("malignant"))'), r"model 'tumour': .*label column 'malignant'.*String"),
        (then('.with_columns(pl.lit(None, dtype=pl.Float64).alias("malignant"))'), r"Only 0 labelled decisions"),
        (then('.with_columns(pl.lit(1.0).alias("malignant"))'), r"All labels are the same"),
        (then('.with_columns((pl.col("malignant") * 2 + 0.5).alias("malignant"))'), r"labels of a binary task are 0 and 1; 2\.5 is none"),
        (then('.with_columns(pl.lit(7).alias("patient"))'), r"source 'patients': 568 rows repeat the key patient"),
        (then('.with_columns(pl.lit("x").alias("worst radius"))'), r"candidate 'linear'.*Training raised ValueError"),
        (then('.with_columns(pl.struct("patient").alias("worst radius"))'), r"'worst radius'.*not supported"),
        ('    return pl.read_csv("not there.csv")\n', r"source 'patients' \(.*tumours\.py:\d+\): Loading it raised FileNotFoundError"),
        ('    from pathlib import Path\n    Path("bad.csv").write_bytes(b"a,b\\n1,2\\n3,\\"")\n    return pl.read_csv("bad.csv")\n', r"tumours\.py:\d+\): Loading it raised|timestamp column"),
        ('    from pathlib import Path\n    Path("bad.parquet").write_bytes(b"PAR1nonsense")\n    return pl.read_parquet("bad.parquet")\n', r"tumours\.py:\d+\): Loading it raised ComputeError"),
        ("    return None\n", r"source 'patients': The loading function gave a NoneType.*polars DataFrame"),
        ("    return rows.to_pandas\n", r"The loading function gave a .*polars DataFrame"),
        ('    return pl.LazyFrame({"a": [1]}).select("b")\n', r"source 'patients'.*ColumnNotFoundError"),
    ],
)  # fmt: skip
def test_a_source_that_gives_no_good_rows_ends_training_in_words(fresh, new, says):
    fresh.edit(ROWS, new).fails(*TRAIN, status=2, says=says)
    assert fresh.state().store.count(ModelVersion) == 0


@pytest.mark.parametrize(
    ("new", "says"),
    [
        ("    raise RuntimeError('no luck')\n", r"candidate 'linear' of model 'tumour' \(.*tumours\.py:\d+\): Training raised RuntimeError: no luck"),
        ("    return None\n", r"Training gave None, which has no predict_proba\(\).*Return the fitted estimator"),
        ("    return LogisticRegression\n", r"Training gave <class .*which has no predict_proba\(\)"),
        ("    return LogisticRegression()\n", r"candidate 'linear'.*NotFittedError"),
        ("    class E:\n        def predict_proba(self, X):\n            return np.full((len(X), 2), np.nan)\n    return E()\n", r"candidate 'linear'.*predictions: 228 of 228 values|114 of 114 values are NaN"),
        ("    class E:\n        def predict_proba(self, X):\n            return np.full((3, 2), 0.5)\n    return E()\n", r"candidate 'linear'.*predictions: It gave shape \(3,\) for 11\d rows"),
        ("    class E:\n        def predict_proba(self, X):\n            return np.full(len(X), 0.5)\n    return E()\n", r"predict_proba\(\) gave shape \(11\d,\).*two columns"),
        ("    class E:\n        def predict_proba(self, X):\n            return np.full((len(X), 2), 0.5)\n    return E()\n", r"No predictor can stand for the estimator E.*pickled"),
        ("    import sys\n    sys.exit(0)\n", r"candidate 'linear'.*SystemExit"),
    ],
)  # fmt: skip
def test_a_train_function_that_gives_no_model_ends_training_in_words(fresh, new, says):
    fresh.edit(FIT, new).fails(*TRAIN, status=2, says=says)
    assert fresh.state().store.count(ModelVersion) == 0


@pytest.mark.parametrize(
    ("new", "says"),
    [
        ("    raise KeyError('mean radios')\n", r"the baseline of model 'tumour' \(.*tumours\.py:\d+\): It raised KeyError"),
        ("    return np.zeros(3)\n", r"the baseline of model 'tumour': It gave shape \(3,\) for 11\d rows"),
        ("    return np.full(len(X), np.nan)\n", r"the baseline of model 'tumour': 11\d of 11\d values are NaN"),
        ("    return ['large'] * len(X)\n", r"the baseline of model 'tumour': It gave no numbers"),
    ],
)  # fmt: skip
def test_a_baseline_that_gives_no_predictions_ends_training_in_words(fresh, new, says):
    fresh.edit(BASELINE, new).fails(*TRAIN, status=2, says=says)
    assert fresh.state().store.count(ModelVersion) == 0


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("train", "tumor", "--as", "me"), 3, r"no model 'tumor'.*Did you mean 'tumour'\?"),
        (("train", "--candidate", "liner", "--as", "me"), 3, r"no candidate 'liner'.*Did you mean 'linear'\?"),
        (("train", "--since", "yesterday", "--as", "me"), 2, r"'yesterday' is not a date.*2013-04-01"),
        (("train", "--since", "2024-05-01", "--until", "2024-02-01", "--as", "me"), 2, r"--since.*before.*--until"),
        (("train", "--since", "1990-01-01", "--until", "1990-02-01", "--as", "me"), 2, r"No row is known at 1990-02-01.*569 rows"),
        (("train", "--as", "colleague"), 5, r"colleague may not train.*author"),
        (("train", "--as", "colleage"), 5, r"no user 'colleage'.*Did you mean 'colleague'\?"),
        (("train", "--seed", "x"), 2, r"--seed.*'x'.*keepwell train --help"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_train_change_nothing(fresh, arguments, status, says):
    fresh("status")
    before = fresh.fingerprint()
    fresh.fails(*arguments, status=status, says=says)
    assert fresh.fingerprint() == before
    assert fresh.state().store.count(Work, {"state": ["queued", "running"]}) == 0


def test_a_window_of_event_time_bounds_the_training_set(fresh):
    ended = fresh("train", "--as", "me", "--candidate", "linear", "--since", "2024-02-01", "--until", "2024-05-01", "--json")  # fmt: skip
    assert ended.status == 0, ended
    (found,) = fresh.state().store.find(TrainingSet)
    assert (found.since, found.until, found.as_of) == (
        moment("2024-02-01"),
        moment("2024-05-01"),
        moment("2024-05-01"),
    )
    # Four decisions a day; those of the last two days are not yet diagnosed at its end.
    assert found.rows == 4 * (29 + 31 + 30) - 8 + 1


@pytest.mark.parametrize(
    ("new", "says"),
    [
        ("    raise RuntimeError('no price')\n", r"the KPI of model 'tumour' \(.*tumours\.py:\d+\): It raised RuntimeError: no price"),
        ("    return np.zeros(3)\n", r"the KPI of model 'tumour': It gave shape \(3,\) for 11\d rows"),
        ("    return None\n", r"the KPI of model 'tumour': It gave"),
    ],
)  # fmt: skip
def test_a_kpi_that_gives_no_money_ends_the_release_in_words_and_may_be_mended(
    fresh, new, says, monkeypatch
):
    fresh.edit(KPI, new)
    assert fresh(*TRAIN).status == 0
    skip_to_kpi(monkeypatch)
    ended = fresh("release", LABEL, "--as", "me")
    assert ended.status == 1
    assert re.search(says, ended.err), ended.err
    version = fresh.state().store.get(ModelVersion, "tumour", 1)
    assert version.state == "registered"
    assert "KPI validation" in version.reason
    assert fresh("release", LABEL, "--as", "me").status == 1  # it is not under way for ever


def skip_to_kpi(monkeypatch):
    """Ask the last question only: the six before it start gateways and have stories of their own."""

    def fine(context, procedure, version):
        return (CheckResult(check="left out", verdict="pass", message=""),)

    steps = tuple(StepDeclaration(s.name, fine) for s in release.RELEASE.steps[:6])
    course = msgspec.structs.replace(release.RELEASE, steps=(*steps, release.RELEASE.steps[6]))
    monkeypatch.setattr(release, "RELEASE", course)


def test_training_the_same_data_again_gives_the_next_version(fresh):
    assert [v["version"] for v in fresh(*TRAIN, "--json").json] == [1]
    assert [v["version"] for v in fresh(*TRAIN, "--json").json] == [2]
    one, two = (fresh.state().store.get(ModelVersion, "tumour", n) for n in (1, 2))
    assert (one.training_set, one.artefact) == (two.training_set, two.artefact)


@pytest.mark.services
@pytest.mark.slow
def test_a_failed_training_through_real_processes_ends_the_same_way(fresh, monkeypatch):
    fresh.edit(FIT, "    raise RuntimeError('no luck')\n")
    monkeypatch.undo()
    ended = keepwell(*TRAIN, "--json", folder=fresh.folder, check=False)
    assert ended.returncode == 2, ended
    assert json.loads(ended.stdout)["error"]["code"] == "invalid_input"
    assert re.search(
        r"keepwell train: .*tumours\.py:\d+\): Training raised RuntimeError: no luck", ended.stderr
    )
    assert "Traceback" not in ended.stderr
