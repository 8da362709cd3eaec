"""A process told to end in the worst moment still ends."""

import subprocess
import sys

FLOOD = """
import signal, sys, threading, time
from keepwell.serving.stopping import StopSignal

stop = {kind}()
signal.signal(signal.SIGALRM, lambda *_: stop.set())
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
until = time.monotonic() + 1.0
while time.monotonic() < until:
    {clear}
    stop.wait(0)
print("ended")
"""


def ends(kind, clear, *, within):
    """Flood a waiting process with signals for a second; tell whether it then ended as it should."""
    try:
        ended = subprocess.run(
            [sys.executable, "-c", FLOOD.format(kind=kind, clear=clear)],
            capture_output=True,
            text=True,
            timeout=within,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return ended.stdout == "ended\n"


def test_a_flood_of_signals_while_it_waits_does_not_lock_it_up():
    assert ends("StopSignal", "stop._told = False", within=60)


def test_an_event_is_locked_up_by_the_same_flood():
    assert not ends("threading.Event", "stop.clear()", within=4)
