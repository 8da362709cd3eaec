"""A small project for wrong use: made by ``keepwell init``, trained and released once, copied for each test."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tests.stories.projects import with_free_ports

from keepwell.app.cli import common
from keepwell.app.cli.main import main
from keepwell.app.execute import TASKS
from keepwell.app.procedures import procedures, work_of
from keepwell.app.template import write_template
from keepwell.app.wiring import open_state
from keepwell.core.errors import KINDS, KeepwellError
from keepwell.core.records.lifecycle import Release
from keepwell.core.records.models import ModelVersion
from keepwell.core.records.work import Work
from keepwell.lifecycle.loop import turn
from keepwell.lifecycle.release import start_release
from keepwell.lifecycle.training import start_training, training_work

LABEL = "tumour/1"


class InThisProcess:
    """Runs heavy tasks here instead of in a process of their own. Implements ``keepwell.core.ports.executor``."""

    def __init__(self, state):
        self._state = state

    def run(self, task, work_id):
        TASKS[task](self._state, work_of(self._state, work_id))


def work_off(state):
    """Do all queued work here, as the worker would: the same procedures, the same turn of the loop."""
    state.executor = InThisProcess(state)
    kinds = procedures(state)
    while True:
        turn(state.context)
        queued = state.store.find(Work, {"state": "queued"}, order=["created", "id"])
        if not queued:
            return
        for work in queued:
            _walk(state, work, kinds[work.kind].steps)


def _walk(state, work, steps):
    ended, error = "done", None
    for step in steps:
        try:
            if not step.run(work.id):
                break
        except KeepwellError as raised:
            ended, error = "failed", (f"{step.name}: {raised}", raised.code)
            break
    with state.store.transaction(actor="worker") as transaction:
        found = transaction.get(Work, work.id)
        changes = {"state": ended} | ({"error": error[0], "result": error[1]} if error else {})
        transaction.replace(_next(found, **changes))


def _next(record, **changes):
    return msgspec.structs.replace(record, revision=record.revision + 1, **changes)


def made(folder):
    """A new project on free ports."""
    write_template(folder)
    with_free_ports(folder)
    return folder


def trained(folder):
    """A project with one version, trained by ``me`` and released."""
    state = open_state(made(folder))
    now = state.clock.now()
    start_training(
        state.project,
        training_work(
            id="train-1", model="tumour", candidates=("linear",), since=None, until=now, as_of=now,
            seed=0, author="me", now=now,
        ),
        actor="me",
        store=state.store,
    )  # fmt: skip
    work_off(state)
    (version,) = state.store.find(ModelVersion)
    start_release(state.context, version, actor="me")
    work_off(state)
    released = state.store.find(Release)[0]
    assert released.state == "passed", released
    state.store.close()
    return folder


@dataclass
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


class Commands:
    """Runs commands of a project in this process, and keeps its files at hand."""

    def __init__(self, folder, capsys, monkeypatch):
        self.folder = Path(folder)
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(common, "ensure_worker", work_off)
        monkeypatch.setattr("sys.dont_write_bytecode", True)
        for name in ("KEEPWELL_USER", "KEEPWELL_TOKEN"):
            monkeypatch.delenv(name, raising=False)

    def __call__(self, *arguments, token=""):
        self._monkeypatch.chdir(self.folder)
        if token:
            self._monkeypatch.setenv("KEEPWELL_TOKEN", token)
        self._capsys.readouterr()
        try:
            status = main(list(arguments))
        except SystemExit as left:
            status = int(left.code or 0)
        said = self._capsys.readouterr()
        self._monkeypatch.delenv("KEEPWELL_TOKEN", raising=False)
        return Ended(status, said.out, said.err)

    def fails(self, *arguments, status, says, token=""):
        """It must fail with this status, in one sentence for people and, with ``--json``, the same for machines."""
        ended = self(*arguments, "--json", token=token)
        assert ended.status == status, ended
        assert "Traceback" not in ended.err
        assert re.search(says, ended.err, re.DOTALL), ended.err
        sentences = [
            line for line in ended.err.splitlines() if line.startswith(("keepwell ", "keepwell:"))
        ]
        assert len(sentences) == 1, ended.err
        error = ended.json["error"]
        assert KINDS[error["code"]].exit_status == status
        assert re.search(says, f"{error['where']}: {error['what']} {error['todo']}", re.DOTALL)
        return ended

    def edit(self, old, new, file="tumours.py"):
        path = self.folder / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return self

    def state(self):
        return open_state(self.folder)

    def fingerprint(self):
        """Everything audited that the project holds: two equal ones are two equal states."""
        state = self.state()
        entries = [e.hash for e in state.store.audit()]
        state.store.close()
        return entries


def copied(source, target):
    shutil.copytree(source, target, symlinks=True)
    return target
