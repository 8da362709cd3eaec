"""Money on the real month of flights: what versions would have earned, and what they did."""

import json

import pytest
from tests.stories.projects import keepwell, state_of

from keepwell.app.rolling import appraise_version
from keepwell.core.clock import DAY
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.watching import LedgerEntry


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
