"""A version answers only while its evidence holds: what the gateway publishes, looked at again on a timer."""

import msgspec
import pytest
from tests.lifecycle.parts import DAY, START, context, released

from keepwell.core.records.data import Column
from keepwell.core.records.evidence import Evidence
from keepwell.core.records.models import Artefact, ModelVersion
from keepwell.core.records.traffic import HOLDOUT, Arm, Endpoint
from keepwell.core.records.watching import Alert
from keepwell.lifecycle.approvals import approve, withdraw
from keepwell.serving.editions import Shelf
from keepwell.serving.gateway import Publisher
from keepwell.serving.rollouts.plans import write_plan


@pytest.fixture
def shop(tmp_path):
    return context(tmp_path)


@pytest.fixture
def publisher(shop, tmp_path):
    return Publisher(
        store=shop.store, blobs=shop.blobs, verifier=shop.signer, shelf=Shelf(tmp_path / "editions"),
        clock=shop.clock,
    )  # fmt: skip


def approved(shop, number, days):
    made = released(shop, number)
    approval = approve(
        "buys", number, by="ben", reason="good", expires_in=f"{days}d", store=shop.store,
        blobs=shop.blobs, signer=shop.signer, clock=shop.clock,
    )  # fmt: skip
    return made, approval


def arm(version, name, weight):
    return Arm(
        name=name, model="buys", version=version.version, artefact=version.artefact, weight=weight
    )


def deploy(shop, *arms, holdout=None, unit=""):
    with shop.store.transaction(actor="ana") as transaction:
        transaction.add(
            Endpoint(name="buys", model="buys", unit=unit, label_delay=0, created=START)
        )
        write_plan(
            transaction, "buys", arms=arms, mirrors=(), holdout=holdout, reason="test", actor="ana",
            now=START,
        )  # fmt: skip


def published(publisher, tmp_path):
    publisher.refresh()
    (endpoint,) = Shelf(tmp_path / "editions").read().endpoints
    return {a.version: a.weight for a in endpoint.arms}, endpoint.refused


def alerts(shop):
    return [alert.message for alert in shop.store.find(Alert, {"monitor": "admission"})]


def damage_blob(shop, digest):
    path = shop.blobs.path(digest)
    path.chmod(0o644)
    path.write_bytes(b"?" + path.read_bytes()[1:])


def damage_file(shop, version):
    files = msgspec.json.decode(shop.blobs.get(version.artefact), type=Artefact).files
    damage_blob(shop, files["golden.json"])


def damage_signature(shop, version):
    row = shop.store.find(Evidence, {"subject": version.label()}, order=["created"], limit=1)[0]
    damage_blob(shop, row.envelope)


def name_another_artefact(shop, version):
    with shop.store.transaction(actor="mallory") as transaction:
        row = transaction.get(ModelVersion, "buys", version.version)
        changed = msgspec.structs.replace(row, artefact=row.code, revision=row.revision + 1)
        transaction.replace(changed)


def test_an_approval_that_expires_takes_its_version_out_of_use_at_the_next_look(
    shop, publisher, tmp_path
):
    version, approval = approved(shop, 1, days=10)
    deploy(shop, arm(version, "champion", 10_000))
    assert published(publisher, tmp_path) == ({1: 10_000}, "")
    shop.clock.at = approval.expires - 1
    assert not publisher.refresh()
    shop.clock.at = approval.expires
    arms, refused = published(publisher, tmp_path)
    assert arms == {}
    assert "buys/1: 0 of 1 approvals hold; approval by ben: it has expired" in refused
    assert len(alerts(shop)) == 1
    assert "it has expired" in alerts(shop)[0]
    publisher.refresh()
    assert len(alerts(shop)) == 1  # one reason is told once


def test_the_share_of_a_refused_version_goes_to_the_fallback(shop, publisher, tmp_path):
    one, _ = approved(shop, 1, days=90)
    two, short = approved(shop, 2, days=5)
    deploy(shop, arm(one, "champion", 9_000), arm(two, "challenger", 1_000))
    assert published(publisher, tmp_path)[0] == {1: 9_000, 2: 1_000}
    shop.clock.at = short.expires + DAY
    arms, refused = published(publisher, tmp_path)
    assert arms == {1: 10_000}
    assert refused.startswith("buys/2: ")


def test_a_withdrawn_approval_takes_effect_without_waiting_for_its_end(shop, publisher, tmp_path):
    version, approval = approved(shop, 1, days=90)
    deploy(shop, arm(version, "champion", 10_000))
    assert published(publisher, tmp_path)[0] == {1: 10_000}
    withdraw(approval.id, by="ben", reason="doubts", store=shop.store, clock=shop.clock)
    arms, refused = published(publisher, tmp_path)
    assert arms == {}
    assert "it was withdrawn" in refused


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_file, "artefact: "),
        (damage_signature, "release step "),
        (name_another_artefact, "the plan names another artefact than the version has"),
    ],
    ids=["a file of the artefact", "a signed envelope", "the row of the version"],
)
def test_what_is_changed_behind_the_gateways_back_ends_the_serving(
    shop, publisher, tmp_path, damage, says
):
    version, _ = approved(shop, 1, days=90)
    deploy(shop, arm(version, "champion", 10_000))
    assert published(publisher, tmp_path)[0] == {1: 10_000}
    damage(shop, version)
    arms, refused = published(publisher, tmp_path)
    assert arms == {}
    assert says in refused
    assert len(alerts(shop)) == 1


def test_an_unpacked_file_that_was_changed_is_unpacked_again(shop, publisher, tmp_path):
    version, _ = approved(shop, 1, days=90)
    deploy(shop, arm(version, "champion", 10_000))
    publisher.refresh()
    path = Shelf(tmp_path / "editions").artefact_folder(version.artefact) / "golden.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"0.5", b"0.7"))
    publisher.refresh()
    assert path.read_bytes() == before


def held_out(tmp_path):
    (endpoint,) = Shelf(tmp_path / "editions").read().endpoints
    return endpoint.holdout


def test_units_are_held_out_only_while_their_version_may_answer_and_reads_what_is_sent(
    shop, publisher, tmp_path
):
    one, short = approved(shop, 1, days=5)
    two, _ = approved(shop, 2, days=90)
    held = arm(one, HOLDOUT, 500)
    deploy(shop, arm(two, "champion", 10_000), holdout=held, unit="user")
    assert published(publisher, tmp_path) == ({2: 10_000}, "")
    assert held_out(tmp_path) == held
    other = msgspec.structs.replace(one.signature, inputs=(Column(name="y", dtype="float64"),))
    with shop.store.transaction(actor="ana") as transaction:
        transaction.replace(
            msgspec.structs.replace(one, signature=other, revision=one.revision + 1)
        )
    # Whom it held out is answered like all others, and somebody hears of it.
    assert published(publisher, tmp_path) == ({2: 10_000}, "")
    assert held_out(tmp_path) is None
    assert "held out with another signature than that of buys/2" in alerts(shop)[0]
    with shop.store.transaction(actor="ana") as transaction:
        transaction.replace(msgspec.structs.replace(one, revision=one.revision + 2))
    publisher.refresh()
    assert held_out(tmp_path) == held
    shop.clock.at = short.expires
    publisher.refresh()
    assert held_out(tmp_path) is None
    assert "buys/1 is refused: 0 of 1 approvals hold" in alerts(shop)[-1]
