"""What every store must do. Subclass ``StoreContract`` in a test module and give the fixture ``store``."""

from __future__ import annotations

import threading

import msgspec
import pytest

from keepwell.core.auditing import audit_problems
from keepwell.core.errors import Conflict, InvalidInput, NotFound
from keepwell.core.ports.store import Store
from keepwell.core.records.evidence import SigningKey
from keepwell.core.records.models import Alias, Model, ModelVersion
from keepwell.core.records.watching import Measurement

NOW = 1_700_000_000_000_000


def a_model(name: str, **fields: object) -> Model:
    """Make a model as it is before it is stored."""
    return msgspec.structs.replace(Model(name=name, created=NOW, updated=NOW), **fields)


def a_version(number: int, **fields: object) -> ModelVersion:
    """Make a version of the model ``m``."""
    made = ModelVersion(
        model="m", version=number, artefact="sha256:0", author="ana", created=NOW, updated=NOW
    )
    return msgspec.structs.replace(made, **fields)


def a_measurement(value: float | None) -> Measurement:
    """Make a measurement: a record without audit and without revision."""
    return Measurement(
        endpoint="e",
        monitor="log_loss",
        kind="performance",
        version=1,
        start=0,
        end=1,
        rows=10,
        value=value,
        state="ok",
        computed=NOW,
    )


class StoreContract:
    """The promises of ``keepwell.core.ports.store``."""

    @pytest.fixture
    def store(self) -> Store:
        """Give an empty store."""
        message = "Give the fixture 'store' in your subclass."
        raise TypeError(message)

    def test_what_was_committed_is_read_back_equal(self, store: Store) -> None:
        key = SigningKey(keyid="k", public=bytes(range(32)), created=NOW)
        model = a_model("m", tags={"ünï": "'; drop table models; --"}, description="a\nb")
        version = a_version(1, renews=None)
        with store.transaction(actor="ana") as transaction:
            for record in (key, model, version):
                transaction.add(record)
        assert store.get(SigningKey, "k") == key
        assert store.get(Model, "m") == model
        assert store.get(ModelVersion, "m", 1) == version
        assert store.get(Model, "unknown") is None

    def test_a_transaction_reads_its_own_writes(self, store: Store) -> None:
        with store.transaction(actor="ana") as transaction:
            transaction.add(a_model("m"))
            assert transaction.get(Model, "m") is not None
            assert transaction.count(Model) == 1

    def test_a_transaction_that_raises_leaves_nothing(self, store: Store) -> None:
        before = store.version()
        with pytest.raises(ZeroDivisionError), store.transaction(actor="ana") as transaction:
            transaction.add(a_model("m"))
            raise ZeroDivisionError
        assert store.get(Model, "m") is None
        assert list(store.audit()) == []
        assert store.version() == before

    def test_adding_a_key_twice_is_a_conflict(self, store: Store) -> None:
        with store.transaction(actor="ana") as transaction:
            transaction.add(a_model("m"))
        with pytest.raises(Conflict), store.transaction(actor="ben") as transaction:
            transaction.add(a_model("m", description="another"))
        found = store.get(Model, "m")
        assert found is not None
        assert found.description == ""

    def test_a_replacement_must_follow_the_stored_revision(self, store: Store) -> None:
        with store.transaction(actor="ana") as transaction:
            transaction.add(a_model("m"))
            transaction.replace(a_model("m", revision=2))
        for revision in (1, 2, 4):
            with pytest.raises(Conflict), store.transaction(actor="ben") as transaction:
                transaction.replace(a_model("m", revision=revision, description="lost"))
        assert store.get(Model, "m") == a_model("m", revision=2)

    def test_replacing_or_removing_nothing_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFound), store.transaction(actor="ana") as transaction:
            transaction.replace(a_model("m", revision=2))
        with pytest.raises(NotFound), store.transaction(actor="ana") as transaction:
            transaction.remove(Model, "m", reason="gone")

    def test_of_measurements_the_last_one_wins_and_none_is_audited(self, store: Store) -> None:
        for value in (0.5, None, 0.25):
            with store.transaction(actor="watch") as transaction:
                transaction.replace(a_measurement(value))
        assert store.find(Measurement) == [a_measurement(0.25)]
        assert list(store.audit()) == []

    def test_find_filters_orders_and_limits(self, store: Store) -> None:
        with store.transaction(actor="ana") as transaction:
            for number in (3, 1, 2, 10):
                transaction.add(a_version(number, run="r" if number < 3 else ""))

        def numbers(
            where: dict[str, object] | None = None,
            order: tuple[str, ...] = (),
            limit: int | None = None,
        ) -> list[int]:
            found = store.find(ModelVersion, where, order=order, limit=limit)
            return [version.version for version in found]

        assert numbers() == [1, 2, 3, 10], "without an order, the key's"
        assert numbers(order=("-version",), limit=2) == [10, 3]
        assert numbers(where={"run": "r"}) == [1, 2]
        assert numbers(where={"version": [1, 10, 99]}) == [1, 10]
        assert numbers(where={"version": []}) == []
        assert numbers(where={"version >": 1, "version <=": 3}) == [2, 3]
        assert numbers(where={"version >=": 3, "version <": 10}) == [3]
        assert numbers(where={"run !=": "r"}) == [3, 10]
        assert numbers(where={"renews": None}) == [1, 2, 3, 10]
        assert numbers(order=("-run", "-version")) == [2, 1, 10, 3]
        assert store.count(ModelVersion, {"version >": 1}) == 3

    def test_a_field_that_is_no_column_is_refused(self, store: Store) -> None:
        for where in ({"colour": 1}, {"tags": "x"}, {"version ~": 1}):
            with pytest.raises(InvalidInput):
                store.find(ModelVersion, where)
        with pytest.raises(InvalidInput):
            store.find(ModelVersion, order=["colour"])

    def test_every_audited_change_leaves_one_linked_entry(self, store: Store) -> None:
        alias = Alias(model="m", alias="champion", version=1)
        with store.transaction(actor="ana") as transaction:
            transaction.add(alias, reason="first")
            moved = msgspec.structs.replace(alias, version=2, revision=2)
            transaction.replace(moved, reason="second")
        with store.transaction(actor="ben") as transaction:
            transaction.remove(Alias, "m", "champion", reason="third")
        entries = list(store.audit())
        assert [(e.seq, e.actor, e.action, e.reason) for e in entries] == [
            (1, "ana", "add", "first"),
            (2, "ana", "replace", "second"),
            (3, "ben", "remove", "third"),
        ]
        assert [e.subject for e in entries] == ["aliases/m/champion"] * 3
        assert [(e.before, e.after) for e in entries] == [
            ("", alias.digest()),
            (alias.digest(), moved.digest()),
            (moved.digest(), ""),
        ]
        assert all(e.hash == e.expected_hash() for e in entries)
        assert audit_problems(store) == []

    def test_the_audit_can_be_read_from_a_place_on(self, store: Store) -> None:
        with store.transaction(actor="ana") as transaction:
            for number in range(1, 8):
                transaction.add(a_version(number))
        assert [e.seq for e in store.audit(after=2, limit=3)] == [3, 4, 5]
        assert [e.seq for e in store.audit(after=5)] == [6, 7]
        assert list(store.audit(after=7)) == []

    def test_the_version_grows_with_each_commit_and_with_nothing_else(self, store: Store) -> None:
        before = store.version()
        with store.transaction(actor="ana") as transaction:
            transaction.add(a_model("m"))
        between = store.version()
        assert between > before
        store.find(Model)
        assert store.version() == between

    def test_of_many_threads_with_one_revision_exactly_one_writes(self, store: Store) -> None:
        with store.transaction(actor="ana") as transaction:
            transaction.add(a_model("m"))
        won: list[int] = []
        start = threading.Barrier(6)

        def write(number: int) -> None:
            start.wait()
            try:
                with store.transaction(actor=f"t{number}") as transaction:
                    transaction.replace(a_model("m", revision=2, description=str(number)))
                won.append(number)
            except Conflict:
                pass

        threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        found = store.get(Model, "m")
        assert found is not None
        assert found.description == str(won[0])
        assert audit_problems(store) == []

    def test_closing_twice_is_harmless(self, store: Store) -> None:
        store.close()
        store.close()
