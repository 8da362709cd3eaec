"""The return on what a version cost: counted from what is measured and priced, and from nothing else."""

import pytest

from keepwell.core.clock import WEEK
from keepwell.core.errors import InvalidInput
from keepwell.core.records.returns import Earned
from keepwell.core.records.watching import LedgerEntry
from keepwell.core.settings import PriceSettings
from keepwell.watch.returns import Spending, return_of
from keepwell.watch.totals import totals

PRICES = PriceSettings(cpu_hour=2.0, gb_month=0.5, label=0.01)
SPENT = Spending(
    training_seconds=1800.0,
    serving_seconds=3600.0,
    served=2000,
    artefact_gb_months=1.0,
    log_gb_months=3.0,
)


def entry(week, *, difference=20.0, unit="USD"):
    return LedgerEntry(
        endpoint="e", version=3, start=week * WEEK, end=(week + 1) * WEEK, unit=unit, decisions=1000, labelled=900,
        value=100.0, baseline=100.0 - difference, difference=difference, low=difference - 5, high=difference + 5,
        sum_squares=4.0, computed=0,
    )  # fmt: skip


def told(spending=SPENT, prices=PRICES, entries=None):
    return return_of(entries or [entry(0), entry(1)], spending, prices, model="m")


def test_the_return_is_what_was_earned_less_its_cost_over_the_cost():
    found = told()
    assert [(cost.name, cost.amount) for cost in found.costs] == [
        ("training", 1.0), ("serving", 2.0), ("artefact", 0.5), ("log", 1.5), ("labels", 18.0),
    ]  # fmt: skip
    assert found.cost == 23.0
    assert found.rate.estimate == pytest.approx((40 - 23) / 23)
    whole = totals([entry(0), entry(1)])
    assert found.rate.low == pytest.approx((whole.low - 23) / 23)
    assert found.rate.high == pytest.approx((whole.high - 23) / 23)
    assert found.notes == ()


def test_what_is_not_measured_is_said_and_leaves_no_return():
    found = told(Spending(serving_seconds=3600.0, served=2000, log_gb_months=3.0))
    assert found.rate is None
    assert [cost.name for cost in found.costs if cost.quantity is None] == ["training", "artefact"]
    assert found.notes == ("Not measured: training, artefact. So there is no return.",)
    assert found.cost == 2.0 + 1.5 + 18.0


def test_what_has_no_price_is_left_out_and_said():
    found = told(Spending(), PriceSettings(label=0.01))
    assert found.rate.estimate == pytest.approx((40 - 18) / 18)
    assert found.notes == ("Not priced, so not counted: training, serving, artefact, log.",)
    bare = told(prices=PriceSettings())
    assert (bare.rate, bare.cost) == (None, 0)
    assert bare.notes == ("Nothing is priced: set [prices] in keepwell.toml.",)


def test_prices_in_another_currency_give_no_return():
    found = told(prices=PriceSettings(currency="EUR", label=0.01))
    assert found.rate is None
    assert any("Prices are in EUR, what was earned in USD" in note for note in found.notes)


def test_model_calls_of_a_part_of_the_decisions_are_told_as_such():
    found = told(Spending(serving_seconds=1.0, served=500))
    assert "Model calls were measured for 500 rows of 2,000 decisions." in found.notes


def test_a_version_that_lost_money_has_a_return_below_what_was_paid():
    found = told(entries=[entry(0, difference=-10.0), entry(1, difference=-10.0)])
    assert found.rate.estimate == pytest.approx((-20 - 23) / 23)
    assert found.rate.low < found.rate.estimate < found.rate.high < 0


def test_money_in_two_units_is_refused():
    with pytest.raises(InvalidInput, match="2 units"):
        told(entries=[entry(0), entry(1, unit="EUR")])


def test_what_was_earned_over_a_holdout_stands_in_place_of_the_baseline_and_the_rest_is_told():
    over = Earned(
        endpoint="e", model="m", version=3, against="holdout", since_plan=7, unit="USD", earned=230.0, low=46.0,
        high=400.0, decisions=800, labelled=700,
    )  # fmt: skip
    found = return_of([entry(0), entry(1)], SPENT, PRICES, model="m", over=over)
    assert (found.against, found.earned, found.labelled) == ("holdout", 230.0, 700)
    assert found.rate is not None
    # The labels of all its decisions were paid for.
    assert (found.cost, found.rate.estimate, found.rate.low) == (23.0, 9.0, 1.0)
    assert "Of its 1,800 labelled decisions 1,100 are not in it" in found.notes[1]
    assert told().against == "baseline"
    alone = return_of([], SPENT, PRICES, model="m", over=over)
    assert alone.costs[-1].quantity == 700
