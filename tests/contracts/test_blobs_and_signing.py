"""The contracts of blobs and signing on what ships, and on members that break them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from keepwell.adapters.blobs.files import FileBlobs
from keepwell.adapters.signing.dsse import KEY_FILE, DsseSigner, DsseVerifier, open_signer
from keepwell.core.admission import artefact_problems
from keepwell.core.digest import canonical, digest_bytes
from keepwell.core.errors import Corrupt, InvalidInput, NotFound, Unavailable
from keepwell.core.records.evidence import SigningKey
from keepwell.core.records.models import Artefact, ModelVersion
from keepwell.core.statements import TEST_RESULT, read_evidence, sign_evidence
from keepwell.testing.blobs import BlobsContract
from keepwell.testing.signing import STATEMENT, SignerContract


def flip(path: Path, place: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.chmod(0o644)
    path.write_bytes(bytes(content))


class TestFileBlobs(BlobsContract):
    @pytest.fixture
    def blobs(self, tmp_path):
        return FileBlobs(tmp_path / "blobs")

    def damage(self, blobs, digest):
        flip(blobs._place(digest))

    def test_a_blob_is_read_only_and_no_half_file_is_left(self, blobs, tmp_path):
        place = blobs.path(blobs.put(b"x"))
        assert stat.S_IMODE(place.stat().st_mode) == 0o444
        assert [p.name for p in place.parent.iterdir()] == [place.name]

    @pytest.mark.parametrize(
        "digest", ["", "x", "sha256:../../etc/passwd", "sha256:" + "A" * 64, "sha256:" + "a" * 63]
    )
    def test_what_is_no_digest_never_becomes_a_path(self, blobs, digest):
        for ask in (blobs.get, blobs.path, blobs.has, blobs.remove):
            with pytest.raises(InvalidInput):
                ask(digest)

    def test_a_file_that_cannot_be_read_is_the_callers_fault(self, blobs, tmp_path):
        with pytest.raises(InvalidInput):
            blobs.put_file(tmp_path / "nothing")

    def test_a_folder_that_cannot_be_written_is_unavailable(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(Unavailable):
            FileBlobs(tmp_path / "file").put(b"x")

    def test_a_full_disk_is_named_and_leaves_nothing(self, tmp_path):
        # A file-size limit is how a process meets a full disk without filling one.
        pid = os.fork()
        if pid == 0:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            code = 1
            try:
                FileBlobs(tmp_path / "blobs").put(b"x" * 5000)
            except Unavailable as error:
                code = 0 if "full" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert [p for p in (tmp_path / "blobs").rglob("*") if p.is_file()] == []


class _Trusting(FileBlobs):
    """Blobs that do not check what they hand on."""

    def get(self, digest):
        return self._place(digest).read_bytes()

    def path(self, digest):
        return self._place(digest)


def test_the_contract_catches_blobs_that_do_not_check(tmp_path):
    with pytest.raises(pytest.fail.Exception):
        TestFileBlobs().test_a_changed_byte_is_never_handed_on(_Trusting(tmp_path))


class TestDsseSigner(SignerContract):
    @pytest.fixture
    def signer(self, tmp_path):
        return open_signer(tmp_path / "own")

    @pytest.fixture
    def stranger(self, tmp_path):
        return open_signer(tmp_path / "other")

    def test_a_verifier_with_the_public_key_alone_opens(self, signer):
        key = SigningKey(keyid=signer.keyid, public=signer.public, created=0)
        assert DsseVerifier([key]).open(signer.sign(STATEMENT)) == (STATEMENT, signer.keyid)

    def test_a_revoked_key_counts_no_longer(self, signer):
        key = SigningKey(keyid=signer.keyid, public=signer.public, created=0, revoked=1)
        with pytest.raises(Corrupt):
            DsseVerifier([key]).open(signer.sign(STATEMENT))


class _Believing(DsseSigner):
    """A signer that believes what names its key."""

    def _signer_of(self, envelope, signed):
        return envelope.signatures[0].keyid


def test_the_contract_catches_a_signer_that_does_not_check():
    bad = _Believing(Ed25519PrivateKey.generate())
    with pytest.raises(pytest.fail.Exception):
        SignerContract().test_a_changed_payload_is_refused(bad)


def test_the_key_is_made_once_for_its_owner_alone(tmp_path):
    first = open_signer(tmp_path / "keys")
    assert stat.S_IMODE((tmp_path / "keys" / KEY_FILE).stat().st_mode) == 0o600
    assert open_signer(tmp_path / "keys").keyid == first.keyid


def test_a_damaged_key_file_is_corrupt(tmp_path):
    open_signer(tmp_path)
    (tmp_path / KEY_FILE).write_bytes(b"-----BEGIN NOTHING-----")
    with pytest.raises(Corrupt, match="damaged"):
        open_signer(tmp_path)


@pytest.fixture
def evidence(tmp_path):
    blobs, signer = FileBlobs(tmp_path / "blobs"), open_signer(tmp_path / "keys")
    row = sign_evidence(
        signer=signer, blobs=blobs, subject="m/1", subject_digest=digest_bytes(b"artefact"), predicate=TEST_RESULT,
        body={"results": [1, 2]}, verdict="pass", now=5, procedure="release-1", step="parameter testing",
    )  # fmt: skip
    return row, blobs, signer


def test_evidence_reads_back_what_was_signed(evidence):
    row, blobs, signer = evidence
    statement = read_evidence(row, blobs=blobs, verifier=signer)
    assert statement.predicate["verdict"] == "pass"
    assert statement.predicate["results"] == [1, 2]


def test_any_flipped_byte_of_an_evidence_blob_is_found(evidence):
    row, blobs, signer = evidence
    path = blobs._place(row.envelope)
    for place in range(0, path.stat().st_size, 7):
        flip(path, place)
        with pytest.raises(Corrupt):
            read_evidence(row, blobs=blobs, verifier=signer)
        flip(path, place)
    read_evidence(row, blobs=blobs, verifier=signer)


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "fail"},
        {"subject": "m/2"},
        {"subject_digest": digest_bytes(b"another")},
        {"procedure": "release-2"},
        {"step": "KPI validation"},
        {"created": 6},
        {"signer": "somebody"},
        {"predicate": "another"},
    ],
)
def test_a_row_that_differs_from_what_was_signed_is_found(evidence, change):
    row, blobs, signer = evidence
    with pytest.raises(Corrupt):
        read_evidence(msgspec.structs.replace(row, **change), blobs=blobs, verifier=signer)


def test_an_evidence_blob_that_is_gone_is_not_found(evidence):
    row, blobs, signer = evidence
    blobs.remove(row.envelope)
    with pytest.raises(NotFound):
        read_evidence(row, blobs=blobs, verifier=signer)


def test_any_flipped_byte_of_an_artefact_is_found(tmp_path):
    blobs = FileBlobs(tmp_path)
    files = {"model.onnx": blobs.put(b"weights"), "package.json": blobs.put(b"{}")}
    manifest = blobs.put(canonical(Artefact(files=files)))
    version = ModelVersion(
        model="m", version=1, artefact=manifest, author="ana", created=0, updated=0
    )
    assert artefact_problems(version, blobs=blobs) == []
    for digest in (manifest, *files.values()):
        flip(blobs._place(digest))
        assert artefact_problems(version, blobs=blobs), digest
        flip(blobs._place(digest))
    blobs.remove(files["model.onnx"])
    assert artefact_problems(version, blobs=blobs)
    assert artefact_problems(
        msgspec.structs.replace(version, artefact=blobs.put(b"[]")), blobs=blobs
    )
