"""Approvals: by somebody else, of exactly this, until it changes or the time is over."""

import msgspec
import pytest
from tests.lifecycle.parts import DAY, START, context, released, version

from keepwell.core.admission import admission_problems, bound_of, standing_approvals
from keepwell.core.digest import digest_bytes
from keepwell.core.errors import InvalidInput, NotFound, Refused
from keepwell.core.records.lifecycle import Approval, StepResult
from keepwell.core.records.models import ModelVersion
from keepwell.lifecycle.approvals import approve, withdraw


@pytest.fixture
def shop(tmp_path):
    return context(tmp_path)


def consent(shop, *, by="ben", number=1, scope="version", reason="good", expires_in="90d"):
    return approve(
        "buys", number, by=by, reason=reason, expires_in=expires_in, scope=scope, store=shop.store,
        blobs=shop.blobs, signer=shop.signer, clock=shop.clock,
    )  # fmt: skip


def held(shop, number=1):
    return standing_approvals(
        shop.store.get(ModelVersion, "buys", number), store=shop.store, blobs=shop.blobs,
        verifier=shop.signer, now=shop.clock.now(),
    )  # fmt: skip


def admits(shop, number=1):
    return admission_problems(
        shop.store.get(ModelVersion, "buys", number), approvals=1, store=shop.store, blobs=shop.blobs,
        verifier=shop.signer, now=shop.clock.now(),
    )  # fmt: skip


def test_an_approval_holds_until_the_moment_that_it_names(shop):
    released(shop)
    approval = consent(shop, expires_in="10d")
    assert approval.expires == START + 10 * DAY
    assert admits(shop) == []
    shop.clock.at = approval.expires - 1
    assert admits(shop) == []
    shop.clock.at = approval.expires
    assert held(shop) == ([], ["approval by ben: it has expired"])
    assert admits(shop) == ["0 of 1 approvals hold", "approval by ben: it has expired"]
    consent(shop)  # consenting again after the end is a new consent
    assert admits(shop) == []
    assert shop.store.count(Approval) == 2


@pytest.mark.parametrize("name", ["artefact", "training_set", "code"])
def test_a_changed_digest_of_the_version_voids_its_approvals(shop, name):
    made = released(shop)
    consent(shop)
    changed = msgspec.structs.replace(
        made, revision=made.revision + 1, **{name: digest_bytes(b"another")}
    )
    with shop.store.transaction(actor="mallory") as transaction:
        transaction.replace(changed)
    assert held(shop) == ([], [f"approval by ben: it names another {name}"])
    assert any("0 of 1 approvals" in p or "artefact" in p for p in admits(shop))


def test_a_release_under_another_policy_voids_approvals_of_the_one_before(shop):
    released(shop)
    consent(shop)
    shop.clock.at += DAY
    strict = msgspec.structs.replace(
        shop, settings=msgspec.structs.replace(shop.settings, policy=msgspec.structs.replace(shop.settings.policy, latency_ms=1.0))
    )  # fmt: skip
    again = msgspec.structs.replace(shop.store.get(ModelVersion, "buys", 1), version=2, revision=1)
    assert again.version == 2
    rerelease(strict)
    assert held(shop) == ([], ["approval by ben: it names another policy, results"])
    assert consent(shop).bound == bound_of(
        shop.store.get(ModelVersion, "buys", 1), store=shop.store
    )
    assert admits(shop) == []


def rerelease(shop):
    """The same version through another release."""
    from tests.lifecycle import parts

    found = shop.store.get(ModelVersion, "buys", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "version", lambda *_, **__: found)
        parts.released(shop)


def test_another_result_of_the_release_voids_the_approval(shop):
    released(shop)
    consent(shop)
    step = shop.store.find(StepResult)[0]
    with shop.store.transaction(actor="mallory") as transaction:
        transaction.remove(StepResult, step.procedure, step.step, reason="lost")
    assert held(shop) == ([], ["approval by ben: it names another results"])


def test_a_row_that_differs_from_what_was_signed_does_not_count(shop):
    released(shop)
    approval = consent(shop, expires_in="1d")
    longer = msgspec.structs.replace(approval, expires=approval.expires + DAY, revision=2)
    with shop.store.transaction(actor="mallory") as transaction:
        transaction.replace(longer)
    assert held(shop) == ([], ["approval by ben: the row differs from what was signed"])


def test_a_withdrawn_approval_does_not_count_and_stays_on_record(shop):
    released(shop)
    approval = consent(shop)
    with pytest.raises(Refused):
        withdraw(approval.id, by="ana", reason="no", store=shop.store, clock=shop.clock)
    withdraw(approval.id, by="ben", reason="doubts", store=shop.store, clock=shop.clock)
    assert held(shop) == ([], ["approval by ben: it was withdrawn"])
    again = withdraw(approval.id, by="ben", reason="doubts", store=shop.store, clock=shop.clock)
    assert again.revision == 2
    with pytest.raises(NotFound):
        withdraw("approval-0", by="ben", reason="x", store=shop.store, clock=shop.clock)


def test_two_approvals_by_one_person_count_once(shop):
    released(shop)
    first, second = consent(shop), consent(shop, reason="still good")
    assert first == second
    consent(shop, by="carol")
    assert sorted(a.by for a in held(shop)[0]) == ["ben", "carol"]


def test_an_author_or_somebody_without_the_role_cannot_approve(shop):
    released(shop)
    for name, says in (
        ("ana", "may not approve"),
        ("olga", "may not approve"),
        ("mallory", "no user 'mallory'"),
    ):
        with pytest.raises(Refused, match=says):
            consent(shop, by=name)
    with pytest.raises(InvalidInput, match="needs a reason"):
        consent(shop, reason="  ")
    version(shop, 2)
    with pytest.raises(Refused, match="no passed release"):
        consent(shop, number=2)
    with pytest.raises(NotFound):
        consent(shop, number=3)
    assert shop.store.count(Approval) == 0


def test_consent_to_renewals_holds_for_newer_data_under_the_same_code_alone(shop):
    released(shop)
    consent(shop, scope="renewals")
    assert held(shop)[0] == []  # not for the version that it was given for
    shop.clock.at += DAY
    renewal = released(shop, 2, renews=1)
    assert [a.scope for a in held(shop, 2)[0]] == ["renewals"]
    changed = msgspec.structs.replace(renewal, code=digest_bytes(b"edited"), revision=2)
    with shop.store.transaction(actor="ana") as transaction:
        transaction.replace(changed)
    assert held(shop, 2) == ([], ["approval by ben: it names another code"])
