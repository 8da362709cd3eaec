"""A full disk, a folder that cannot be written, damaged files: said in words, and nothing that was there is lost."""

import os
import resource
import shutil
import subprocess
from contextlib import contextmanager

import msgspec
import pytest
from tests.app.projects import LABEL

from keepwell.core.admission import standing_approvals
from keepwell.core.records.evidence import Evidence, SigningKey
from keepwell.core.records.lifecycle import Approval
from keepwell.core.records.models import Artefact, ModelVersion
from keepwell.core.records.work import Work

TRAIN = ("train", "--as", "me", "--candidate", "linear")
ROOT = os.geteuid() == 0


@contextmanager
def mounted(*arguments, at):
    """Mount something for the length of a block; skips where that is not permitted."""
    done = subprocess.run(
        ["mount", *arguments, str(at)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mount is not permitted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


@contextmanager
def files_up_to(size):
    """Let no file grow beyond this many bytes, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_full_of_blobs_ends_training_in_words_and_making_room_mends_it(fresh, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    fresh.edit("[policy]", f"[store]\nblobs = '{disk}/blobs'\n[policy]", "keepwell.toml")
    with mounted("-t", "tmpfs", "-o", "size=64k", "tmpfs", at=disk):
        fresh.fails(
            *TRAIN, status=7, says=r"disk/blobs: The disk is full\. Make room and try again"
        )
        assert fresh.state().store.count(ModelVersion) == 0
        assert not list(disk.glob("**/.new-*"))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert fresh(*TRAIN).status == 0
        assert "all hold" in fresh("evidence", "verify").out


def test_a_disk_full_of_state_ends_a_command_in_words_and_loses_nothing(released):
    released("status")
    before = released.fingerprint()
    with files_up_to(4096):
        released.fails(
            "approve",
            LABEL,
            "--reason",
            "x",
            "--as",
            "colleague",
            status=7,
            says=r"keepwell\.db: .*disk|The disk is full",
        )
    assert released.fingerprint() == before
    assert "unbroken" in released("audit", "verify").out
    assert released("approve", LABEL, "--reason", "x", "--as", "colleague").status == 0


def test_a_state_folder_that_cannot_be_written_is_named_and_nothing_is_lost(released):
    folder = released.folder / ".keepwell"
    before = released.fingerprint()
    with mounted("--bind", str(folder), at=folder):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        for arguments in (
            ("status",),
            ("approve", LABEL, "--reason", "x", "--as", "colleague"),
            TRAIN,
        ):
            released.fails(*arguments, status=7, says=r"\.keepwell/keepwell\.db: .*may be written")
        released.fails("up", "--for", "1", status=7, says=r"\.keepwell/run.*Read-only file system")
    assert released.fingerprint() == before
    assert released("status").status == 0


def test_a_state_folder_that_cannot_be_made_is_named(fresh):
    (fresh.folder / ".keepwell").write_text("a file is in the way")
    for arguments in (("status",), TRAIN, ("up", "--for", "1")):
        fresh.fails(*arguments, status=7, says=r"\.keepwell")


@pytest.mark.parametrize("how", ["header", "middle", "truncated"])
def test_a_damaged_database_is_named_and_not_written_over(released, how):
    path = released.folder / ".keepwell" / "keepwell.db"
    released("status")
    for beside in ("-wal", "-shm"):
        (path.parent / f"{path.name}{beside}").unlink(missing_ok=True)
    content = bytearray(path.read_bytes())
    if how == "header":
        content[:100] = b"\x13" * 100
    elif how == "middle":
        content[4096:] = b"\x13" * (len(content) - 4096)
    else:
        del content[len(content) // 2 :]
    path.write_bytes(bytes(content))
    released.fails(
        "status", status=6, says=r"keepwell\.db: The file is damaged.*Restore it from a backup"
    )
    assert path.read_bytes() == bytes(content)


def flip(path):
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def file_of(state, name):
    version = state.store.get(ModelVersion, "tumour", 1)
    manifest = msgspec.json.decode(state.blobs.get(version.artefact), type=Artefact)
    return state.blobs.path(manifest.files[name])


@pytest.mark.parametrize(("how", "status", "says"), [
    (flip, 6, "are not the ones that were written.*Restore it from a backup"),
    (os.unlink, 3, "There is no blob.*Restore it from a backup"),
])  # fmt: skip
def test_damaged_evidence_is_found_and_not_shown(released, how, status, says):
    state = released.state()
    row = state.store.find(Evidence)[0]
    how(state.blobs.path(row.envelope))
    released.fails("evidence", "show", row.envelope[7:19], status=status, says=says)
    ended = released("evidence", "verify")
    assert ended.status == 1
    assert row.envelope in ended.out
    doctor = released("doctor", "--json")
    assert doctor.status == 1
    assert [f["state"] for f in doctor.json if f["name"] == "evidence"] == ["bad"]


@pytest.mark.parametrize(
    ("how", "says"), [(flip, "not the ones that were written"), (os.unlink, "There is no blob")]
)
def test_a_damaged_artefact_ends_its_release_in_words_and_is_not_under_way_for_ever(
    released, how, says
):
    how(file_of(released.state(), "validation.parquet"))
    ended = released("release", LABEL, "--as", "me", "--json")
    assert ended.status == 1
    assert says in ended.err
    assert ended.json["procedure"]["state"] == "failed"
    assert released.state().store.get(ModelVersion, "tumour", 1).state == "registered"
    assert released("release", LABEL, "--as", "me").status == 1


def test_a_deleted_signing_key_is_not_replaced_without_a_word(released):
    keys = released.folder / ".keepwell" / "keys"
    kept = released.folder / "kept"
    shutil.copytree(keys, kept)
    shutil.rmtree(keys)
    approve = ("approve", LABEL, "--reason", "good", "--as", "colleague")
    released.fails(
        *approve,
        status=6,
        says=r"signing key is not there.*Restore it from a backup.*evidence new-key",
    )
    assert released("status").status == 0
    assert "all hold" in released("evidence", "verify").out
    assert released.state().store.count(SigningKey) == 1
    shutil.copytree(kept, keys)
    assert released(*approve).status == 0


def test_a_new_signing_key_is_made_by_a_person_in_charge_and_the_old_signatures_hold(released):
    released.fails("evidence", "new-key", "--as", "me", status=5, says="has its signing key")
    assert released("approve", LABEL, "--reason", "good", "--as", "colleague").status == 0
    shutil.rmtree(released.folder / ".keepwell" / "keys")
    released.fails(
        "evidence", "new-key", "--as", "colleague", status=5, says="may not make a new signing key"
    )
    assert released("evidence", "new-key", "--as", "me").status == 0
    assert "all hold" in released("evidence", "verify").out
    state = released.state()
    (version,) = state.store.find(ModelVersion)
    held, problems = standing_approvals(
        version, store=state.store, blobs=state.blobs, verifier=state.signer, now=state.clock.now()
    )
    assert ([a.by for a in held], problems) == (["colleague"], [])
    assert state.store.count(SigningKey) == 2
    assert [e.actor for e in state.store.audit() if e.subject.startswith("signing_keys")] == [
        "keepwell.toml",
        "me",
    ]


@pytest.mark.parametrize(("spoil", "status", "says"), [
    (lambda path: path.write_bytes(b"-----BEGIN nothing"), 6, r"signing\.pem: The signing key's file is damaged.*Restore"),
    (lambda path: (path.unlink(), path.mkdir()), 7, r"signing\.pem: The signing key cannot be read or made"),
])  # fmt: skip
def test_a_signing_key_that_cannot_be_read_is_named(released, spoil, status, says):
    spoil(released.folder / ".keepwell" / "keys" / "signing.pem")
    released.fails("approve", LABEL, "--reason", "x", "--as", "colleague", status=status, says=says)
    assert released_count(released) == 0


def released_count(commands):
    import sqlite3

    with sqlite3.connect(commands.folder / ".keepwell" / "keepwell.db") as connection:
        (count,) = connection.execute("SELECT count(*) FROM approvals").fetchone()
    connection.close()
    return count


def test_work_that_failed_is_told_by_the_doctor(fresh):
    fresh.edit(
        "    return make_pipeline(SimpleImputer()",
        "    return None\n    return make_pipeline(SimpleImputer()",
    )
    assert fresh(*TRAIN).status == 2
    assert fresh.state().store.count(Work, {"state": "failed"}) == 1
    assert any(f["name"] == "work" and f["state"] == "bad" for f in fresh("doctor", "--json").json)
    assert fresh.state().store.count(Approval) == 0
