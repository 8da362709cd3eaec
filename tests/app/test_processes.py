"""Where a process listens: as declared, else where it was before, else anywhere free."""

import threading

import pytest
from tests.stories.projects import free_port

from keepwell.app import processes
from keepwell.app.processes import announce, port_for
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
