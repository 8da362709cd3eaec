"""The stage shows a version as a gateway would serve it, and the publisher serves only what is admitted."""

from __future__ import annotations

import socket

import pytest
from tests.serving.gateways import arm, linear

from keepwell.adapters.blobs.files import FileBlobs
from keepwell.adapters.signing.dsse import open_signer
from keepwell.adapters.stores.sql import open_store
from keepwell.core.clock import FixedClock
from keepwell.core.errors import Corrupt, InvalidInput, NotFound, Unavailable
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.traffic import BUCKETS, Endpoint, TrafficPlan
from keepwell.core.records.watching import Alert
from keepwell.serving.application import HttpApplication
from keepwell.serving.editions import Shelf
from keepwell.serving.gateway import Publisher
from keepwell.serving.sockets import bind
from keepwell.serving.stage import GatewayStage
from keepwell.training.artefacts import pack_folder

ENDPOINT = Endpoint(name="e", model="m", unit="user", label_delay=0, created=0)
ROW = {"x": 1.0, "flag": True, "dep delay": None}


@pytest.fixture
def blobs(tmp_path):
    return FileBlobs(tmp_path / "blobs")


@pytest.fixture
def version(tmp_path, blobs):
    shelf = Shelf(tmp_path / "made")
    digest = pack_folder(shelf.artefact_folder(linear(shelf, 10.0)), blobs=blobs)
    return ModelVersion(model="m", version=4, artefact=digest, author="ana", created=0, updated=0)


def test_a_staged_version_answers_over_http_and_ends_with_the_block(version, blobs):
    with GatewayStage(blobs=blobs).open(version, ENDPOINT) as staged:
        assert staged.predict([ROW, ROW | {"x": 5.0}]) == [11.0, 15.0]
        assert staged.raw(b"{")[0] == 422
        with pytest.raises(InvalidInput, match="dep delay"):
            staged.predict([{"x": 1.0, "flag": None}])
        assert 0 < staged.load_seconds < 60
        assert 10_000_000 < staged.memory_bytes < 1_000_000_000
        application = staged._application
        assert application.probe("e", version=4, rows=[ROW], within=60) == [11.0]
        with pytest.raises(Unavailable):
            application.probe("e", version=5, rows=[ROW], within=0.1)
    with pytest.raises(Unavailable):
        application.predict("e", [ROW])


def test_a_version_that_does_not_load_is_named_with_its_reason(tmp_path, blobs, version):
    shelf = Shelf(tmp_path / "broken")
    folder = shelf.artefact_folder(linear(shelf, 1.0))
    (folder / "linear.json").write_bytes(b"{}")
    import msgspec

    broken = msgspec.structs.replace(version, artefact=pack_folder(folder, blobs=blobs))
    with (
        pytest.raises(InvalidInput, match=r"m/4 does not load.*linear\.json"),
        GatewayStage(blobs=blobs).open(broken, ENDPOINT),
    ):
        pass


def test_a_version_whose_bytes_changed_is_not_staged(version, blobs):
    place = blobs._place(version.artefact)
    place.chmod(0o644)
    place.write_bytes(b"x")
    with pytest.raises((Corrupt, NotFound)), GatewayStage(blobs=blobs).open(version, ENDPOINT):
        pass


def test_a_version_without_evidence_is_refused_by_the_publisher_with_one_alert(
    tmp_path, version, blobs
):
    store = open_store(f"sqlite:///{tmp_path}/a.db")
    plan = TrafficPlan(
        endpoint="e",
        revision=1,
        arms=(arm(4, version.artefact, BUCKETS),),
        salt="s",
        reason="test",
        by="ana",
        created=0,
    )
    with store.transaction(actor="ana") as transaction:
        for record in (ENDPOINT, version, plan):
            transaction.add(record)
    shelf = Shelf(tmp_path / "editions")
    publisher = Publisher(
        store=store,
        blobs=blobs,
        verifier=open_signer(tmp_path / "keys"),
        shelf=shelf,
        clock=FixedClock(5),
    )
    assert publisher.refresh()
    (endpoint,) = shelf.read().endpoints
    assert endpoint.arms == ()
    assert "m/4 has no release" in endpoint.refused
    assert not publisher.refresh(), "nothing changed"
    assert shelf.generation() == 1
    assert [alert.monitor for alert in store.find(Alert)] == ["admission"]
    store.close()


def test_a_port_that_is_taken_says_what_to_do():
    first = bind("127.0.0.1", 0)
    try:
        with pytest.raises(Unavailable, match="Another program holds the port"):
            bind("127.0.0.1", first.getsockname()[1])
    finally:
        first.close()


def test_an_application_without_a_gateway_is_told_so():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and nobody listens
        with pytest.raises(Unavailable, match="did not answer"):
            HttpApplication(f"http://127.0.0.1:{held.getsockname()[1]}").predict("e", [ROW])
