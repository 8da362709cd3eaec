"""The runner of steps: in order, each once, and what raises leaves nothing under way for ever."""

import msgspec
import pytest
from tests.lifecycle.parts import context, fail_work, failing, passing, version

from keepwell.core.auditing import audit_problems
from keepwell.core.errors import Conflict, InvalidInput, NotFound, Unavailable
from keepwell.core.records.evidence import CheckResult, Evidence
from keepwell.core.records.lifecycle import RELEASE_STEPS, Release, StepResult
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.work import Work
from keepwell.core.statements import read_evidence
from keepwell.lifecycle.loop import turn
from keepwell.lifecycle.procedures import StepDeclaration, Waiting, run_step
from keepwell.lifecycle.release import RELEASE, start_release


@pytest.fixture
def shop(tmp_path):
    return context(tmp_path)


class Questions:
    """Seven questions that count how often they are asked; some answer otherwise, or raise."""

    def __init__(self, **answers):
        self.asked = []
        self._answers = {int(name[1:]): answer for name, answer in answers.items()}

    def course(self):
        return msgspec.structs.replace(
            RELEASE,
            steps=tuple(
                StepDeclaration(name, self._ask(n)) for n, name in enumerate(RELEASE_STEPS, 1)
            ),
        )

    def _ask(self, number):
        def ask(context, procedure, version):
            self.asked.append(number)
            answer = self._answers.get(number, passing())
            if isinstance(answer, Exception):
                raise answer
            return answer

        return ask


def begun(shop):
    return start_release(shop, version(shop), actor="ana")


def walk(shop, questions, release, steps=range(1, 8)):
    return [run_step(shop, questions.course(), release.id, n) for n in steps]


def test_seven_steps_leave_seven_signed_verdicts_and_a_released_version(shop):
    questions = Questions()
    release = begun(shop)
    assert walk(shop, questions, release) == [True] * 7
    assert questions.asked == [1, 2, 3, 4, 5, 6, 7]
    results = shop.store.find(StepResult, {"procedure": release.id}, order=["number"])
    assert [r.step for r in results] == list(RELEASE_STEPS)
    for row in shop.store.find(Evidence):
        read_evidence(row, blobs=shop.blobs, verifier=shop.signer)
    assert shop.store.get(Release, release.id).state == "passed"
    assert shop.store.get(ModelVersion, "buys", 1).state == "released"
    assert audit_problems(shop.store) == []


@pytest.mark.parametrize("cut", range(8))
def test_a_procedure_begun_again_after_any_step_asks_only_what_is_left(shop, cut):
    release = begun(shop)
    first = Questions()
    walk(shop, first, release, range(1, cut + 1))
    again = Questions()
    walk(shop, again, release)
    assert first.asked + again.asked == [1, 2, 3, 4, 5, 6, 7]
    assert shop.store.count(StepResult) == shop.store.count(Evidence) == 7
    assert shop.store.get(Release, release.id).state == "passed"


@pytest.mark.parametrize("at", range(1, 8))
def test_a_failed_step_ends_the_procedure_and_no_later_one_is_asked(shop, at):
    release = begun(shop)
    questions = Questions(**{f"s{at}": failing("too slow")})
    assert walk(shop, questions, release) == [True] * (at - 1) + [False] * (8 - at)
    assert questions.asked == list(range(1, at + 1))
    ended = shop.store.get(Release, release.id)
    assert (ended.state, ended.step, ended.reason) == ("failed", RELEASE_STEPS[at - 1], "too slow")
    refused = shop.store.get(ModelVersion, "buys", 1)
    assert (refused.state, refused.reason) == ("refused", f"{RELEASE_STEPS[at - 1]}: too slow")
    assert walk(shop, questions, release, [at]) == [False]  # asked again it gives the same verdict


def test_a_step_that_cannot_decide_lets_nobody_through(shop):
    release = begun(shop)
    unsure = (CheckResult(check="c", verdict="inconclusive", message="too few rows"),)
    assert walk(shop, Questions(s2=unsure), release, [1, 2]) == [True, False]
    assert shop.store.get(Release, release.id).state == "failed"
    release = start_release(shop, shop.store.get(ModelVersion, "buys", 1), actor="ana")
    assert walk(shop, Questions(s1=()), release, [1]) == [
        False
    ]  # no check at all decides nothing either


def test_a_step_that_waits_leaves_no_verdict_and_is_asked_again(shop):
    release = begun(shop)
    waits = Questions(s2=Waiting("a person"))
    assert walk(shop, waits, release, [1, 2]) == [True, False]
    waiting = shop.store.get(Release, release.id)
    assert (waiting.state, waiting.step, waiting.waits_for) == (
        "waiting",
        RELEASE_STEPS[1],
        "a person",
    )
    assert shop.store.count(StepResult) == 1
    later = Questions()
    assert all(walk(shop, later, release))
    assert later.asked == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    "error", [InvalidInput("no such column"), Unavailable("no room"), ZeroDivisionError("x")]
)
def test_a_step_that_raises_leaves_no_verdict_and_its_procedure_ends_with_its_work(shop, error):
    release = begun(shop)
    walk(shop, Questions(), release, [1, 2])
    with pytest.raises(type(error)):
        walk(shop, Questions(s3=error), release, [3])
    assert shop.store.count(StepResult) == 2
    assert turn(shop) == 0  # its work is not over
    assert shop.store.get(Release, release.id).state == "running"
    fail_work(shop, release.id, f"{RELEASE_STEPS[2]}: {error}")
    assert turn(shop) == 1
    assert turn(shop) == 0
    ended = shop.store.get(Release, release.id)
    assert (ended.state, ended.step, ended.reason) == ("failed", RELEASE_STEPS[2], str(error))
    # It says nothing about the version, which may be released again.
    kept = shop.store.get(ModelVersion, "buys", 1)
    assert (kept.state, kept.reason) == ("registered", f"{RELEASE_STEPS[2]}: {error}")
    assert start_release(shop, kept, actor="ana").state == "running"
    assert audit_problems(shop.store) == []


def test_work_that_is_queued_anew_keeps_its_procedure_under_way(shop):
    release = begun(shop)
    walk(shop, Questions(), release, [1])
    fail_work(shop, release.id, "x")
    work = shop.store.find(Work)[0]
    with shop.store.transaction(actor="ana") as transaction:
        transaction.replace(
            msgspec.structs.replace(work, state="queued", revision=work.revision + 1)
        )
    assert turn(shop) == 0
    assert shop.store.get(Release, release.id).state == "running"


def test_a_release_under_way_is_not_begun_twice(shop):
    release = begun(shop)
    with pytest.raises(Conflict, match=release.id):
        start_release(shop, shop.store.get(ModelVersion, "buys", 1), actor="ana")
    with pytest.raises(NotFound):
        run_step(shop, RELEASE, "release-of-nothing", 1)


def test_a_policy_changed_while_a_release_runs_does_not_change_its_limits(shop):
    release = begun(shop)
    looser = msgspec.structs.replace(
        shop, settings=msgspec.structs.replace(shop.settings, policy=msgspec.structs.replace(shop.settings.policy, latency_ms=9e9))
    )  # fmt: skip
    assert walk(looser, Questions(), release) == [True] * 7
    assert shop.store.get(Release, release.id).policy == release.policy
    second = start_release(looser, version(shop, 2), actor="ana")
    assert second.policy != release.policy
