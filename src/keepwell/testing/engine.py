"""What every engine must do. Subclass ``EngineContract`` and give the fixtures ``store`` and ``make``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from keepwell.core.errors import Corrupt, InvalidInput, Refused, Unavailable
from keepwell.core.ports.engine import Engine, Procedure, Step
from keepwell.core.ports.store import Store
from keepwell.core.records.work import Work

PATIENCE = 60.0
"""Seconds that a test waits for what takes milliseconds, on a machine that is busy."""


def work(id: str, *, kind: str = "job", created: int = 0) -> Work:
    """Make a piece of queued work."""
    return Work(id=id, kind=kind, subject="m/1", requested_by="ana", created=created)


def queue(store: Store, *pieces: Work) -> None:
    """Queue work as its cause does: in a transaction."""
    with store.transaction(actor="ana") as transaction:
        for piece in pieces:
            transaction.add(piece)


def ended(store: Store, id: str) -> Work:
    """Wait for a piece of work to be done or failed, and give it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = store.get(Work, id)
        if found is not None and found.state in {"done", "failed"}:
            return found
        time.sleep(0.01)
    pytest.fail(f"{id} did not end: {store.get(Work, id)}")


def procedure(*steps: tuple[str, Callable[[str], bool]]) -> dict[str, Procedure]:
    """Make the procedure of the kind ``job``."""
    return {"job": Procedure(kind="job", steps=tuple(Step(name, run) for name, run in steps))}


def noting(into: list[str], name: str, *, answer: bool = True) -> tuple[str, Callable[[str], bool]]:
    """Make a step that writes its name down and gives this answer."""

    def run(_: str) -> bool:
        into.append(name)
        return answer

    return name, run


class EngineContract:
    """The promises of ``keepwell.core.ports.engine`` within one process; crashes need processes of their own."""

    @pytest.fixture
    def store(self) -> Store:
        """Give an empty store."""
        message = "Give the fixture 'store' in your subclass."
        raise TypeError(message)

    @pytest.fixture
    def make(self) -> Callable[[], Engine]:
        """Give a function that makes an engine on the store; the fixture stops them all at its end."""
        message = "Give the fixture 'make' in your subclass."
        raise TypeError(message)

    def test_steps_run_in_order_and_the_work_is_done(
        self, store: Store, make: Callable[[], Engine]
    ) -> None:
        ran: list[str] = []

        queue(store, work("w1"))
        engine = make()
        engine.start(procedure(*(noting(ran, name) for name in ("first", "second", "third"))))
        found = ended(store, "w1")
        assert (found.state, found.error, found.progress) == ("done", "", "third")
        assert found.started is not None
        assert found.ended is not None
        assert ran == ["first", "second", "third"]
        queue(store, work("w2"))
        assert not engine.idle()
        assert ended(store, "w2").state == "done"
        assert ran[3:] == ["first", "second", "third"]
        self.until(engine.idle)

    def test_a_step_that_says_no_ends_the_work_there(
        self, store: Store, make: Callable[[], Engine]
    ) -> None:
        ran: list[str] = []
        queue(store, work("w"))
        make().start(
            procedure(
                noting(ran, "gate", answer=False),
                noting(ran, "never"),
            )
        )
        assert ended(store, "w").state == "done"
        assert ran == ["gate"]

    def test_what_is_unavailable_is_tried_again(
        self, store: Store, make: Callable[[], Engine]
    ) -> None:
        tried: list[str] = []

        def shaky(id: str) -> bool:
            tried.append(id)
            if len(tried) < 3:
                raise Unavailable("Nobody there yet.")
            return True

        queue(store, work("w"))
        make().start(procedure(("shaky", shaky)))
        assert ended(store, "w").state == "done"
        assert tried == ["w"] * 3

    def test_what_stays_unavailable_fails_with_its_text(
        self, store: Store, make: Callable[[], Engine]
    ) -> None:
        tried: list[str] = []

        def away(id: str) -> bool:
            tried.append(id)
            raise Unavailable("The disk is full.", todo="Make room.")

        queue(store, work("w"))
        make().start(procedure(("write", away)))
        found = ended(store, "w")
        assert found.state == "failed"
        assert "write" in found.error
        assert "The disk is full. Make room." in found.error
        assert found.result == "unavailable"
        assert len(tried) > 1

    @pytest.mark.parametrize("error", [InvalidInput("A column is missing."), KeyError("column")])
    def test_any_other_error_fails_the_work_at_once_and_no_other(
        self, store: Store, make: Callable[[], Engine], error: Exception
    ) -> None:
        tried: list[str] = []

        def broken(id: str) -> bool:
            tried.append(id)
            if id == "bad":
                raise error
            return True

        queue(store, work("bad"), work("good", created=1))
        make().start(procedure(("read", broken)))
        found = ended(store, "bad")
        assert found.state == "failed"
        assert "column" in found.error
        assert ended(store, "good").state == "done"
        assert tried.count("bad") == 1

    def test_work_that_is_parked_goes_on_where_it_was(
        self, store: Store, make: Callable[[], Engine]
    ) -> None:
        ran: list[str] = []
        reached, go = threading.Event(), threading.Event()

        def second(_: str) -> bool:
            reached.set()
            go.wait(PATIENCE)
            ran.append("second")
            return True

        steps = procedure(
            noting(ran, "first"),
            ("second", second),
            noting(ran, "third"),
        )
        queue(store, work("w"))
        engine = make()
        engine.start(steps)
        assert reached.wait(PATIENCE)
        stopping = threading.Thread(target=engine.stop, kwargs={"within": PATIENCE})
        stopping.start()
        time.sleep(0.2)  # the stop has begun before the step ends
        go.set()
        stopping.join(PATIENCE)
        found = store.get(Work, "w")
        assert found is not None
        assert found.state == "running"
        assert ran == ["first", "second"]
        make().start(steps)
        assert ended(store, "w").state == "done"
        assert ran == ["first", "second", "third"]

    def test_of_two_workers_the_second_is_refused(
        self, store: Store, make: Callable[[], Engine]
    ) -> None:
        first = make()
        first.start(procedure(("step", lambda _: True)))
        with pytest.raises(Refused):
            make().start(procedure(("step", lambda _: True)))
        queue(store, work("w"))
        assert ended(store, "w").state == "done"
        first.stop(within=PATIENCE)
        make().start(procedure(("step", lambda _: True)))
        queue(store, work("w2"))
        assert ended(store, "w2").state == "done"

    def test_work_that_no_procedure_can_resume_is_listed(
        self, store: Store, make: Callable[[], Engine]
    ) -> None:
        queue(store, work("known"), work("from the past", kind="of old"))
        with pytest.raises(Corrupt, match="from the past"):
            make().start(procedure(("step", lambda _: True)))
        found = store.get(Work, "known")
        assert found is not None
        assert found.state == "queued"

    def test_stopping_twice_or_before_a_start_is_harmless(self, make: Callable[[], Engine]) -> None:
        engine = make()
        engine.stop(within=1)
        engine = make()
        engine.start(procedure(("step", lambda _: True)))
        began = time.monotonic()
        engine.stop(within=5)
        engine.stop(within=5)
        assert time.monotonic() - began < 10

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something to become true."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.01)
