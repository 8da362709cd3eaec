"""Money on the real month of flights: what versions would have earned, and what they did."""

import json

import pytest
from tests.app.test_rollout_commands import Client
from tests.stories.projects import keepwell, state_of

from keepwell.app.cli.main import main
from keepwell.app.rolling import appraise_version
from keepwell.core.clock import DAY
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.watching import LedgerEntry

pytestmark = [
    pytest.mark.slow,
    pytest.mark.services,
    pytest.mark.timeout(500),
]


def test_a_challenger_is_priced_on_the_real_log_before_it_gets_traffic(told):
    folder, _ = told
    words = ("rollout", "value", "flight-delay/2", "--since", "400d")
    found = json.loads(keepwell(*words, "--json", folder=folder).stdout)
    assert (found["way"], found["unit"]) == ("replay", "USD")
    # Another model on the same passengers: it earns about as much, and not the very same.
    assert found["gain"]["low"] < found["gain"]["estimate"] < found["gain"]["high"]
    assert 0 < abs(found["gain"]["estimate"]) < 0.2 * abs(found["logged"])
    assert found["clusters"] >= 28
    assert found["rows"] + found["unknown"] + found["trained_on"] == found["decisions"]


def test_what_the_champion_would_have_earned_is_what_the_ledger_says_it_did(told):
    state = state_of(told[0])
    champion = state.store.get(ModelVersion, "flight-delay", 1)
    found = appraise_version(state, champion, length=400 * DAY)
    assert (found.gain.estimate, found.gain.low, found.gain.high) == (0.0, 0.0, 0.0)
    entries = state.store.find(LedgerEntry, {"version": 1})
    assert found.rows == sum(entry.labelled for entry in entries)
    assert found.value.estimate * found.rows == pytest.approx(sum(e.value for e in entries))


def test_the_ledger_tells_what_the_champion_cost_and_returned(copy_of_told, capsys):
    settings = copy_of_told / "keepwell.toml"
    prices = "\n[prices]\ncpu_hour = 36.0\ngb_month = 0.02\nlabel = 0.01\n"
    settings.write_text(settings.read_text() + prices)
    assert main(["ledger", "--json", "--project", str(copy_of_told)]) == 0
    (champion,) = json.loads(capsys.readouterr().out)["returns"]
    costs = {cost["name"]: cost for cost in champion["costs"]}
    assert costs["labels"]["quantity"] == champion["labelled"] > 20_000
    # A cpu second costs a cent here: fitting took some, and 28,000 answers at least 2 microseconds each.
    assert 0.001 < costs["training"]["amount"] < 5
    assert 0.0005 < costs["serving"]["amount"] < 1
    assert costs["artefact"]["quantity"] > 0
    assert costs["log"]["quantity"] > 0
    assert champion["cost"] == pytest.approx(sum(cost["amount"] for cost in costs.values()))
    earned = champion["rate"]["estimate"] * champion["cost"] + champion["cost"]
    assert earned == pytest.approx(champion["earned"])
    assert champion["rate"]["low"] < champion["rate"]["estimate"] < champion["rate"]["high"]
    assert champion["notes"] == []
    answered = Client(state_of(copy_of_told)).get("/api/v1/returns").json()
    assert [(each["version"], each["earned"]) for each in answered] == [(1, champion["earned"])]
    assert main(["ledger", "--project", str(copy_of_told)]) == 0
    said = capsys.readouterr().out
    assert "labels: " in said
    assert "not measured" not in said
