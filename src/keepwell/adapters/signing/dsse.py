"""DSSE envelopes (secure-systems-lab DSSE v1.0.2) around in-toto Statements v1, signed with Ed25519 (RFC 8032)."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from keepwell.core.digest import canonical, digest_bytes
from keepwell.core.errors import Corrupt, Unavailable
from keepwell.core.ports.signing import Statement
from keepwell.core.records.evidence import SigningKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
KEY_FILE = "signing.pem"
PUBLIC_BYTES = 32


class _Signature(msgspec.Struct):
    keyid: str
    sig: str


class _Envelope(msgspec.Struct, kw_only=True):
    payload: str
    payload_type: str = msgspec.field(name="payloadType")
    signatures: list[_Signature]


class _Subject(msgspec.Struct):
    name: str
    digest: dict[str, str]


class _Payload(msgspec.Struct, kw_only=True):
    type_: str = msgspec.field(name="_type")
    subject: list[_Subject]
    predicate_type: str = msgspec.field(name="predicateType")
    predicate: dict[str, Any]


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Give the bytes that are signed: type and payload with their lengths, so that neither can pose as the other."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def key_identifier(public: bytes) -> str:
    """Name a public key by the digest of its 32 raw bytes."""
    return digest_bytes(public)


class DsseVerifier:
    """Checks envelopes. Implements ``keepwell.core.ports.signing.Verifier``."""

    def __init__(self, keys: Iterable[SigningKey]) -> None:
        """Trust these keys, but for the revoked ones. Raises Corrupt for one that is not what its name says."""
        self._keys = {key.keyid: _public(key) for key in keys if key.revoked is None}

    def open(self, envelope: bytes) -> tuple[Statement, str]:
        """See ``keepwell.core.ports.signing.Verifier``."""
        try:
            read = msgspec.json.decode(envelope, type=_Envelope)
            payload = _decoded(read.payload)
            signed = pre_authentication_encoding(read.payload_type, payload)
            keyid = self._signer_of(read, signed)
            statement = msgspec.json.decode(payload, type=_Payload)
        except (msgspec.DecodeError, binascii.Error, UnicodeDecodeError) as error:
            raise Corrupt(f"The envelope cannot be read: {error}.", where="evidence") from error
        if read.payload_type != PAYLOAD_TYPE or statement.type_ != STATEMENT_TYPE:
            raise Corrupt("The envelope holds no in-toto Statement v1.", where="evidence")
        subjects = {
            subject.name: f"sha256:{subject.digest.get('sha256', '')}"
            for subject in statement.subject
        }
        if len(subjects) < len(statement.subject):
            raise Corrupt("The statement names a subject twice.", where="evidence")
        return (
            Statement(
                subjects=subjects,
                predicate_type=statement.predicate_type,
                predicate=statement.predicate,
            ),
            keyid,
        )

    def _signer_of(self, envelope: _Envelope, signed: bytes) -> str:
        for signature in envelope.signatures:
            key = self._keys.get(signature.keyid)
            if key is None:
                continue
            try:
                key.verify(_decoded(signature.sig), signed)
            except InvalidSignature:
                continue
            return signature.keyid
        raise Corrupt(
            "No signature of a known, unrevoked key holds.",
            where="evidence",
            todo="The envelope was changed, or its key is not among the project's signing keys.",
        )


def _decoded(text: str) -> bytes:
    """Decode base64 of either alphabet, as the specification asks of a verifier."""
    return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)


def _public(key: SigningKey) -> Ed25519PublicKey:
    if len(key.public) != PUBLIC_BYTES or key_identifier(key.public) != key.keyid:
        raise Corrupt(
            "A signing key is not the one that its identifier names.",
            where=f"signing key {key.keyid}",
            todo="The row was changed; restore the store from a backup.",
        )
    return Ed25519PublicKey.from_public_bytes(key.public)


class DsseSigner(DsseVerifier):
    """Signs with one key and trusts it. Implements ``keepwell.core.ports.signing.Signer``."""

    def __init__(self, private: Ed25519PrivateKey, *, trusted: Iterable[SigningKey] = ()) -> None:
        self._private = private
        self._public = private.public_key().public_bytes_raw()
        own = SigningKey(keyid=self.keyid, public=self._public, created=0)
        super().__init__([own, *trusted])

    @property
    def keyid(self) -> str:
        """See ``keepwell.core.ports.signing.Signer``."""
        return key_identifier(self._public)

    @property
    def public(self) -> bytes:
        """See ``keepwell.core.ports.signing.Signer``."""
        return self._public

    def sign(self, statement: Statement) -> bytes:
        """See ``keepwell.core.ports.signing.Signer``."""
        payload = canonical(
            {
                "_type": STATEMENT_TYPE,
                "subject": [
                    {"name": name, "digest": {"sha256": digest.removeprefix("sha256:")}}
                    for name, digest in statement.subjects.items()
                ],
                "predicateType": statement.predicate_type,
                "predicate": statement.predicate,
            }
        )
        signature = self._private.sign(pre_authentication_encoding(PAYLOAD_TYPE, payload))
        return canonical(
            {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"keyid": self.keyid, "sig": base64.b64encode(signature).decode()}],
            }
        )


def has_key(folder: Path) -> bool:
    """Tell whether a signing key was made in this folder."""
    return (folder / KEY_FILE).exists()


def open_signer(folder: Path, *, trusted: Iterable[SigningKey] = ()) -> DsseSigner:
    """Give the project's signer, making its key on first use (a file that only its owner can read).

    It signs with that key and opens what ``trusted`` keys signed as well.
    Raises Corrupt if the key file cannot be read as an Ed25519 key, Unavailable if it cannot be written.
    """
    path = folder / KEY_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _create(path)
        content = path.read_bytes()
    except OSError as error:
        raise Unavailable(
            f"The signing key cannot be read or made: {error.strerror}.", where=str(path)
        ) from error
    try:
        private = serialization.load_pem_private_key(content, password=None)
    except ValueError as error:
        raise Corrupt(
            "The signing key's file is damaged.",
            where=str(path),
            todo="Restore it from a backup; a new key cannot vouch for what the old one signed.",
        ) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise Corrupt("The signing key is not an Ed25519 key.", where=str(path))
    return DsseSigner(private, trusted=trusted)


def _create(path: Path) -> None:
    content = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    descriptor, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=".new-"
    )  # for its owner alone (0600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)  # of several processes starting together, one key wins
    finally:
        Path(temporary).unlink()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
