"""Projects that the stories are told with: copies of the shipped example and of what ``keepwell init`` makes."""

import contextlib
import fcntl
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from keepwell.app.wiring import open_state

ROOT = Path(__file__).parents[2]
KEEPWELL = [sys.executable, "-m", "keepwell"]


def free_port():
    """A port that nobody has, for somebody to bind later: the kernel gives those below 32768 to nobody by itself."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            return port


PATIENT = "[policy]\nload_seconds = 120.0\nlatency_ms = 5000.0\n"
"""Limits that tell a bad version from a good one, and not a busy machine from an idle one."""


def with_free_ports(folder):
    path = folder / "keepwell.toml"
    text = re.sub(r"127\.0\.0\.1:\d+", f"127.0.0.1:{free_port()}", path.read_text())
    if "[policy]\n" in text:
        text = text.replace("[policy]\n", PATIENT)
    else:
        text = text.replace("\n[rollout]", f"\n{PATIENT}\n[rollout]")
    assert PATIENT in text
    path.write_text(text + "\n[server]\nport = 0\ngateway_port = 0\n")


def flights(folder, *, replay_until):
    shutil.copytree(
        ROOT / "examples" / "flights",
        folder,
        ignore=shutil.ignore_patterns(".keepwell*", "__pycache__"),
    )
    path = folder / "keepwell.toml"
    path.write_text(
        re.sub(r"replay_until = .*", f'replay_until = "{replay_until}"', path.read_text())
    )
    with_free_ports(folder)
    return folder


def keepwell(*arguments, folder, check=True, timeout=400):
    ended = subprocess.run(
        [*KEEPWELL, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if check and ended.returncode:
        raise AssertionError(f"{arguments} gave {ended.returncode}\n{ended.stdout}\n{ended.stderr}")
    return ended


class Up:
    """``keepwell up`` in a process of its own, ended with the block."""

    def __init__(self, folder):
        self.folder = folder
        self.process = subprocess.Popen(
            [*KEEPWELL, "up"],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def __enter__(self):
        out, err = self.process.stdout, self.process.stderr
        assert out is not None
        assert err is not None
        first = out.readline()
        if not first.startswith("dashboard"):
            self.process.kill()
            raise AssertionError(err.read())
        self.dashboard = first.split()[1]
        self.gateway = out.readline().split()[1]
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        if self.process.stdout is not None and not self.process.stdout.closed:
            self.process.communicate(timeout=90)

    def interrupt(self):
        """Press Ctrl-C, as a terminal does for everything in the foreground; give the exit status and what was said."""
        os.killpg(self.process.pid, signal.SIGINT)
        _, said = self.process.communicate(timeout=90)
        return self.process.returncode, said

    def children(self):
        """The processes under it, by name of their entry."""
        return processes_of(self.folder)

    def kill(self):
        """Pull the plug on the supervisor; its children must go with it."""
        pull_the_plug(self.process, self.folder)
        self.process.communicate(timeout=90)


def shared(factory, worker, name, make):
    """Make a folder once for all test processes of this run; nobody may change it, so tests copy it."""
    root = factory.getbasetemp()
    root = root if worker == "master" else root.parent
    folder = root / name
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / f"{name}.made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            (root / f"{name}.made").touch()
    return folder


def processes_of(folder):
    """The ids of a project's running processes, by name: its entries, and ``gateway-worker``."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(folder) in words and "keepwell.app.processes" in words:
            found[words[words.index("keepwell.app.processes") + 1]] = int(path.name)
        elif "keepwell.serving.worker" in words and any(
            word.startswith(f"{folder}/") for word in words
        ):
            found["gateway-worker"] = int(path.name)
    return found


def pull_the_plug(supervisor, folder):
    """Kill the process that holds a project's others, and see that they go with it."""
    supervisor.kill()
    supervisor.wait(timeout=60)
    deadline = time.monotonic() + 60
    while processes_of(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_of(folder), f"outlived their supervisor: {processes_of(folder)}"


def state_of(folder):
    return open_state(folder)


def wait_until(look, *, seconds=300):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def kill(pid):
    """Pull the plug on a process, unless it has ended by itself meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
