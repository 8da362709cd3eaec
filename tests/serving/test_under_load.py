"""What fails beneath a gateway that is asked, one thing at a time; ``test_storms.py`` has them all at once."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.serving.gateways import PATIENCE, Gateway, arm, endpoint, lay_out, linear, running

from keepwell.core.errors import KeepwellError, Unavailable

ROW = {"x": 1.0, "flag": True, "dep delay": None}


class Load:
    """Threads that ask without pause and remember what they were told."""

    def __init__(self, gateway: Gateway, path: str = "e") -> None:
        self.gateway = gateway
        self.path = path
        self.run = os.urandom(4).hex()
        self.acknowledged: list[tuple[str, int, float, int]] = []
        self.failures: list[str] = []
        self.stop = threading.Event()

    def ask(self, name: int) -> None:
        n = 0
        while not self.stop.is_set():
            n += 1
            identity = f"{self.run}-{name}-{n}"
            try:
                status, answer = self.gateway.post({"rows": [ROW], "ids": [identity]}, self.path)
            except KeepwellError as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                continue
            if status != 200:
                self.failures.append(f"{status}: {answer}")
                continue
            (given,) = answer["predictions"]
            self.acknowledged.append(
                (given["id"], given["version"], given["prediction"], given["plan"])
            )


@contextmanager
def loaded(gateway: Gateway, threads: int = 3, path: str = "e") -> Iterator[Load]:
    load = Load(gateway, path)
    running_threads = [threading.Thread(target=load.ask, args=(n,)) for n in range(threads)]
    for thread in running_threads:
        thread.start()
    try:
        yield load
    finally:
        load.stop.set()
        for thread in running_threads:
            thread.join()


def test_an_edition_that_cannot_be_loaded_leaves_the_old_one_answering(tmp_path):
    with running(tmp_path) as gateway:
        good = linear(gateway.shelf, 1.0)
        gateway.publish(endpoint(arms=[arm(1, good)]))
        made = gateway.shelf.artefact_folder(linear(gateway.shelf, 2.0))
        (made / "linear.json").write_bytes(b"{}")
        broken = lay_out(gateway.shelf, made)
        gateway.publish(endpoint(arms=[arm(2, broken)], plan=2), wait=False)
        deadline = time.monotonic() + PATIENCE
        while (
            gateway.application.request("GET", "/ready")[0] == 200 and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        status, said = gateway.application.request("GET", "/ready")
        assert (status, b"linear.json" in said) == (503, True)
        assert gateway.post({"rows": [ROW]})[1]["predictions"][0]["version"] == 1
        gateway.publish(endpoint(arms=[arm(1, good)], mirrors=(arm(2, broken, 0),), plan=3))
        assert gateway.post({"rows": [ROW]})[1]["predictions"][0]["plan"] == 3
        assert b"linear.json" in gateway.application.request("GET", "/v1/endpoints")[1]


def test_an_artefact_that_answers_its_golden_rows_otherwise_is_not_served(tmp_path):
    with running(tmp_path) as gateway:
        made = gateway.shelf.artefact_folder(linear(gateway.shelf, 1.0))
        golden = made / "golden.json"
        golden.write_bytes(golden.read_bytes().replace(b"1.0", b"1.5", 1))
        digest = lay_out(gateway.shelf, made)
        gateway.publish(endpoint(arms=[arm(1, digest)]), wait=False)
        gateway.pool.tend()
        deadline = time.monotonic() + PATIENCE
        said = b""
        while b"golden rows differ" not in said and time.monotonic() < deadline:
            try:
                said = gateway.application.request("GET", "/ready")[1]
            except KeepwellError:
                time.sleep(0.05)
        assert b"golden rows differ" in said
        assert gateway.post({"rows": [ROW]})[0] == 503


def test_a_file_changed_after_it_was_unpacked_is_not_loaded(tmp_path):
    with running(tmp_path) as gateway:
        gateway.publish(endpoint(arms=[arm(1, linear(gateway.shelf, 1.0))]))
        digest = linear(gateway.shelf, 2.0)
        path = gateway.shelf.artefact_folder(digest) / "linear.json"
        path.write_bytes(path.read_bytes().replace(b"2.0", b"3.0"))
        gateway.publish(endpoint(arms=[arm(2, digest)], plan=2), wait=False)
        deadline = time.monotonic() + PATIENCE
        said = b""
        while b"linear.json was changed" not in said and time.monotonic() < deadline:
            said = gateway.application.request("GET", "/ready")[1]
            time.sleep(0.02)
        assert b"linear.json was changed after it was unpacked" in said
        assert gateway.post({"rows": [ROW]})[1]["predictions"][0]["version"] == 1


def test_new_workers_that_do_not_serve_replace_nobody(tmp_path, monkeypatch):
    with running(tmp_path, workers=2) as gateway:
        digest = linear(gateway.shelf, 10.0)
        gateway.publish(endpoint(arms=[arm(1, digest)]))
        before = gateway.pool.pids()
        golden = gateway.shelf.artefact_folder(digest) / "golden.json"
        good = golden.read_bytes()
        golden.write_bytes(good.replace(b"1.0", b"1.5", 1))
        with loaded(gateway, threads=2) as load:
            with pytest.raises(Unavailable, match="was changed after it was unpacked"):
                gateway.pool.swap()
            golden.write_bytes(good)
            with monkeypatch.context() as patch:
                patch.setattr(sys, "executable", "/bin/false")
                with pytest.raises(Unavailable, match="ended with status 1"):
                    gateway.pool.swap()
        assert (gateway.pool.pids(), load.failures) == (before, [])
        gateway.pool.swap()
        assert not set(gateway.pool.pids()) & set(before)


def test_a_log_folder_that_is_removed_is_made_again(tmp_path):
    with running(tmp_path) as gateway:
        gateway.publish(endpoint(arms=[arm(1, linear(gateway.shelf, 10.0))]))
        assert gateway.post({"rows": [ROW]})[0] == 200
        shutil.rmtree(gateway.log)
        assert gateway.post({"rows": [ROW], "ids": ["again"]})[0] == 200
        assert [p.id for p in gateway.records()[0]] == ["again"]


def test_a_full_disk_answers_503_and_is_recovered_from(tmp_path):
    # The kernel refuses a worker more bytes a file, as a full disk would: the last write is cut short.
    with running(tmp_path) as gateway:
        gateway.publish(endpoint(arms=[arm(1, linear(gateway.shelf, 10.0))]))
        (worker,) = gateway.pool.pids()
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
        acknowledged, statuses = [], []
        for n in range(12):
            ids = [f"{n}-{i}" for i in range(200)]
            status, answer = gateway.post({"rows": [ROW] * 200, "ids": ids})
            statuses.append(status)
            acknowledged += ids if status == 200 else []
        assert (statuses[0], statuses[-1]) == (200, 503)
        assert "cannot be written" in answer["error"]
        logged = [p.id for p in gateway.records()[0]]
        assert acknowledged == logged, "all that was acknowledged, and no half batch beside it"
        resource.prlimit(
            worker, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        )
        assert gateway.post({"rows": [ROW] * 200})[0] == 200
        predictions, _, torn = gateway.records()
        assert (len(predictions), torn) == (len(logged) + 200, ())
        assert gateway.pool.pids() == [worker]


def test_a_worker_ends_when_its_parent_is_killed(tmp_path):
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from tests.serving.gateways import PATIENCE, Gateway, arm, endpoint, linear
        gateway = Gateway(Path(sys.argv[1]), workers=1)
        gateway.publish(endpoint(arms=[arm(1, linear(gateway.shelf, 1.0))]))
        print(gateway.pool.pids()[0], flush=True)
        time.sleep(60)
        """
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + PATIENCE
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _alive(worker)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_loads_none_of_the_heavy_packages(tmp_path):
    from keepwell.serving.editions import Shelf

    folder = Shelf(tmp_path).artefact_folder(linear(Shelf(tmp_path), 1.0))
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import keepwell.serving.worker
        from keepwell.training.predictors import load_predictor
        load_predictor(Path(sys.argv[1]))
        import keepwell.training.predictors.onnx
        heavy = {"sqlalchemy", "polars", "sklearn", "alembic", "dbos", "starlette", "cryptography", "scipy"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    said = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "[]"
