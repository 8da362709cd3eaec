"""The charts of a rollout's page say what the looks have measured, and who answered."""

import re
from itertools import pairwise

import msgspec

from keepwell.app.web.rollout import (
    disagreement_of,
    drawn_otherwise,
    effects_of,
    evidence_of,
    facts_of,
    shares_of,
    spell_rule,
    turns_of,
)
from keepwell.core.records.rollouts import Look, Rollout
from keepwell.core.records.traffic import Arm, Period, TrafficPlan

HOUR = 3_600_000_000
ARMS = tuple(
    Arm(name=name, model="m", version=k, artefact="sha256:0", weight=5_000)
    for k, name in enumerate(("champion", "challenger"), 1)
)
TURNING = TrafficPlan(
    endpoint="e", revision=2, arms=ARMS, period=Period(seconds=3600), salt="s", reason="", by="", created=0
)  # fmt: skip


def look(number, *, arms=ARMS, **measured):
    return Look(
        rollout="r", number=number, stage=0, at=number * HOUR, event_time=number * HOUR, rows=number, cursor={},
        memory={}, plan=1, written=2, arms=arms, verdict="go on", reason="", next="", measured=measured, answer="",
    )  # fmt: skip


def test_looks_that_changed_nothing_leave_no_seam_and_arms_have_their_version():
    moved = tuple(
        msgspec.structs.replace(arm, weight=w) for arm, w in zip(ARMS, (1, 9_999), strict=True)
    )
    drawn = str(shares_of([look(1), look(2), look(3), look(4, arms=moved)], 5 * HOUR))
    assert drawn.count("<title>") == 4
    passed = msgspec.structs.replace(look(2, arms=moved), verdict="promote")
    staged = [look(1), passed, msgspec.structs.replace(look(3), stage=1)]
    assert "99.99%" not in shares_of(
        staged, 5 * HOUR
    )  # what passed a stage served by the next one's plan
    assert "challenger v2: 99.99% from" in drawn


def test_where_a_policy_draws_shares_are_what_it_drew():
    looks = [look(n, rewards={"champion": n, "challenger": 9 * n}) for n in (1, 2)]
    assert "challenger v2: 90.00% from" in shares_of(looks, 3 * HOUR, by_policy=True)
    assert "90.00%" not in shares_of(looks, 3 * HOUR)


def test_each_turn_is_drawn_for_the_arm_that_the_gateway_chose():
    drawn = str(turns_of(TURNING, [look(1), look(30)]))
    turns = drawn.count(": 100.00% from")
    assert turns == 30
    assert 5 < drawn.count("challenger v2: 100.00% from") < 25
    assert turns_of(msgspec.structs.replace(TURNING, period=None), [look(1)]) == ""


def test_evidence_is_drawn_with_its_bounds_and_said_with_its_numbers():
    looks = [
        look(n, gain={"challenger": {"mean": 0.5, "low": -1.0 / n, "high": 1.0}}, requests=10 * n, errors=n)
        for n in (1, 2)
    ]  # fmt: skip
    titles = [title for title, chart in evidence_of(looks, ["ab"]) if "band" in chart]
    assert titles == [
        "Gain of challenger over the champion",
        "Share of the challenger's requests that failed (95% interval at one look)",
    ]
    assert dict(facts_of(looks[1]))["gain"] == "challenger: 0.5 (-0.5 to 1)"
    assert drawn_otherwise(_running(), TURNING).startswith("Shares are of turns: for 60 minutes")


def test_an_estimate_is_drawn_before_it_has_bounds_and_nothing_before_there_is_one():
    looks = [
        look(1, gain={"challenger": {"mean": None, "low": None, "high": None}}),
        look(2, gain={"challenger": {"mean": 0.4, "low": None, "high": None}}),
        look(3, gain={"challenger": {"mean": 0.5, "low": 0.1, "high": 0.9}}),
    ]
    ((_, chart),) = evidence_of(looks, ["ab"])
    assert chart.count("<circle") == 2
    assert "polygon" not in chart
    assert chart.count("band") == 1  # a bar at the one that has bounds
    said = [dict(facts_of(each))["gain"] for each in looks]
    assert said == [
        "challenger: nothing yet", "challenger: 0.4 (no bounds yet)", "challenger: 0.5 (0.1 to 0.9)"
    ]  # fmt: skip


def test_where_a_shadow_disagrees_is_told_by_slice_and_by_decision():
    told = disagreement_of(
        look(
            1,
            worst_slices=[{"field": "x", "values": "0 to 2", "rows": 40, "disagreed": 0.975}],
            examples=[
                {"time": HOUR, "sent": 0.2, "mirrored": 0.9, "features": {"x": 1.5, "z": None}}
            ],
        )
    )
    assert told is not None
    assert told.slices == [("x", "0 to 2", 40, "97.5%")]
    assert told.fields == ["x", "z"]
    assert told.examples == [("1970-01-01T01:00", "0.2", "0.9", ["1.5", "missing"])]
    assert disagreement_of(look(1, pairs=3, worst_slices=[], examples=[])) is None


def test_what_each_factor_adds_is_told_with_its_interval():
    effect = {
        "factors": ["model", "cut"],
        "levels": ["b", "0.4"],
        "effect": 1.25,
        "low": -1.0,
        "high": 3.5,
    }
    told = effects_of(look(1, effects=[effect | {"p_value": 0.031}]))
    assert told == [("model = b and cut = 0.4", "+1.25 (-1 to 3.5)", "0.031")]
    assert (
        effects_of(look(1, effects={"challenger": {"mean": 1.0}})) == []
    )  # a bandit's, drawn above


def test_names_of_many_arms_stand_beside_one_another_and_beside_the_time():
    arms = tuple(
        Arm(name=name, model="m", version=10 + k, artefact="sha256:0", weight=2_000)
        for k, name in enumerate(("champion", *(f"challenger-{n}" for n in range(4))))
    )
    drawn = str(shares_of([look(1, arms=arms)], 5 * HOUR))
    places = re.findall(r'<text class="when" x="(\d+)" y="(\d+)">([^<]+)<', drawn)
    assert [name for _, _, name in places] == [f"{arm.name} v{arm.version}" for arm in arms]
    for (x, y, name), (after, line, _) in pairwise(places):
        assert line > y or int(after) >= int(x) + 6 * len(name)
    assert all(int(x) + 6 * len(name) < 505 for x, y, name in places if y == places[0][1])
    assert f'viewBox="0 0 720 {180 + int(places[-1][1]) - int(places[0][1])}"' in drawn


def test_rules_are_spelled_as_they_are_declared():
    guard = {"metric": "latency_ms_p99", "margin": 2000.0, "then": "roll back", "worse": ""}
    assert spell_rule([guard, guard | {"metric": "brier"}]) == (
        "latency_ms_p99: margin 2000, then roll back; brier: margin 2000, then roll back"
    )
    assert spell_rule({"2": {"shift": "0"}, "4": {"shift": "2"}}) == "2: shift 0; 4: shift 2"
    assert [spell_rule(v) for v in ([], [0.1, 1.0], False, 28.0, "mean")] == [
        "none", "0.1, 1", "false", "28", "mean"
    ]  # fmt: skip


def _running():
    return Rollout(
        id="r", endpoint="e", model="m", strategy="switchback", challenger=2, state="running", since=0, started=0
    )  # fmt: skip
