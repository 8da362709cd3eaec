"""The processes of a project: where they listen, and what becomes of those that do not stay up."""

import math
import subprocess
import threading

import pytest
from tests.stories.projects import free_port

from keepwell.app import processes, up
from keepwell.app.processes import announce, port_for
from keepwell.app.up import TRIES, Supervisor, wait_after
from keepwell.core.errors import Unavailable
from keepwell.serving.sockets import bind


@pytest.fixture
def state(released):
    return released.state()


def test_a_declared_port_is_taken_as_it_is(state):
    assert port_for(state, "gateway", 4711) == 4711


def test_the_first_start_takes_any_free_port(state):
    assert port_for(state, "gateway", 0) == 0


def test_a_process_begun_again_comes_back_where_its_callers_knew_it(state):
    port = free_port()
    announce(state, "gateway", f"http://127.0.0.1:{port}")
    assert port_for(state, "gateway", 0) == port


def test_it_waits_until_those_of_the_dead_process_let_go(state):
    port = free_port()
    announce(state, "gateway", f"http://127.0.0.1:{port}")
    listening = bind("127.0.0.1", port)
    threading.Timer(0.2, listening.close).start()
    assert port_for(state, "gateway", 0) == port


def test_a_port_that_somebody_else_keeps_is_left_to_him(state, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.2)
    port = free_port()
    announce(state, "gateway", f"http://127.0.0.1:{port}")
    listening = bind("127.0.0.1", port)
    assert port_for(state, "gateway", 0) == 0
    listening.close()


def test_a_note_that_is_cut_off_is_no_port(state):
    announce(state, "gateway", "http://127.0.0.1:1")
    (state.state / "run" / "gateway.json").write_text('{"url": "http://127')
    assert port_for(state, "gateway", 0) == 0


class Starts(Supervisor):
    """Starts programs that end at once where Keepwell's own belong."""

    def __init__(self, state, *names, gives_up=False):
        super().__init__(state, say=lambda _: None, gives_up=gives_up)
        self.starts = dict.fromkeys(names, 0)
        for name in names:
            self._start(name)

    def _start(self, name):
        self._processes[name] = subprocess.Popen(["false"])
        self._processes[name].wait()
        self._started[name] = math.inf  # however slow this machine is, it has not lived long
        self.starts[name] += 1


def test_whatever_dies_beside_the_gateway_is_started_again_for_ever(state, monkeypatch):
    monkeypatch.setattr(up, "LONGEST_WAIT", 0.0)
    held = Starts(state, "server", "worker")
    for _ in range(3 * TRIES):
        held.tend()
    assert held.starts == {"server": 3 * TRIES + 1, "worker": 3 * TRIES + 1}


@pytest.mark.parametrize(("name", "gives_up"), [("gateway", False), ("worker", True)])
def test_a_gateway_that_does_not_stay_up_ends_all_and_any_process_does_where_that_is_wanted(
    state, monkeypatch, name, gives_up
):
    monkeypatch.setattr(up, "LONGEST_WAIT", 0.0)
    held = Starts(state, name, gives_up=gives_up)
    for _ in range(TRIES):
        held.tend()
    with pytest.raises(Unavailable, match=f"The {name} died {TRIES} times in a row"):
        held.tend()


def test_what_dies_again_and_again_is_waited_for_longer_each_time_up_to_a_limit():
    assert [wait_after(deaths) for deaths in (1, 2, 3, 4)] == [0.2, 0.4, 0.8, 1.6]
    assert wait_after(10) == wait_after(10_000) == up.LONGEST_WAIT
