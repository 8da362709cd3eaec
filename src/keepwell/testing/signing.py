"""What every signer must do. Subclass ``SignerContract`` and give the fixtures ``signer`` and ``stranger``."""

from __future__ import annotations

import base64

import msgspec
import pytest

from keepwell.core.digest import digest_bytes
from keepwell.core.errors import Corrupt
from keepwell.core.ports.signing import Signer, Statement

STATEMENT = Statement(
    subjects={"flight-delay/3": digest_bytes(b"artefact"), "other": digest_bytes(b"other")},
    predicate_type="https://example.com/verdict/v1",
    predicate={"verdict": "pass", "measured": {"gain": 0.25, "rows": 10, "ünï": None}},
)


class SignerContract:
    """The promises of ``keepwell.core.ports.signing``: DSSE v1 envelopes around in-toto Statements v1."""

    @pytest.fixture
    def signer(self) -> Signer:
        """Give a signer."""
        message = "Give the fixture 'signer' in your subclass."
        raise TypeError(message)

    @pytest.fixture
    def stranger(self) -> Signer:
        """Give a signer with another key, that does not trust the first."""
        message = "Give the fixture 'stranger' in your subclass."
        raise TypeError(message)

    def test_what_was_signed_is_opened_equal(self, signer: Signer) -> None:
        assert signer.open(signer.sign(STATEMENT)) == (STATEMENT, signer.keyid)

    def test_the_envelope_is_dsse_around_an_in_toto_statement(self, signer: Signer) -> None:
        envelope = msgspec.json.decode(signer.sign(STATEMENT))
        assert envelope["payloadType"] == "application/vnd.in-toto+json"
        assert [s["keyid"] for s in envelope["signatures"]] == [signer.keyid]
        payload = msgspec.json.decode(base64.b64decode(envelope["payload"]))
        assert payload["_type"] == "https://in-toto.io/Statement/v1"
        assert payload["subject"][0] == {
            "name": "flight-delay/3",
            "digest": {"sha256": digest_bytes(b"artefact").removeprefix("sha256:")},
        }

    def test_signing_the_same_twice_gives_the_same_envelope(self, signer: Signer) -> None:
        assert signer.sign(STATEMENT) == signer.sign(STATEMENT)

    def test_the_public_key_has_32_bytes(self, signer: Signer) -> None:
        assert len(signer.public) == 32

    def test_another_signers_envelope_is_refused(self, signer: Signer, stranger: Signer) -> None:
        with pytest.raises(Corrupt):
            signer.open(stranger.sign(STATEMENT))

    def test_another_key_under_the_trusted_name_is_refused(
        self, signer: Signer, stranger: Signer
    ) -> None:
        envelope = msgspec.json.decode(stranger.sign(STATEMENT))
        envelope["signatures"][0]["keyid"] = signer.keyid
        with pytest.raises(Corrupt):
            signer.open(msgspec.json.encode(envelope))

    def test_no_changed_byte_of_an_envelope_gives_another_statement(self, signer: Signer) -> None:
        envelope = signer.sign(STATEMENT)
        for place in range(len(envelope)):
            changed = bytearray(envelope)
            changed[place] ^= 1
            try:
                opened = signer.open(bytes(changed))
            except Corrupt:
                continue
            # A byte that carries nothing (unused bits of base64) may change; what is said may not.
            assert opened == (STATEMENT, signer.keyid)

    def test_a_changed_payload_is_refused(self, signer: Signer) -> None:
        envelope = msgspec.json.decode(signer.sign(STATEMENT))
        payload = base64.b64decode(envelope["payload"]).replace(b'"pass"', b'"fail"')
        envelope["payload"] = base64.b64encode(payload).decode()
        with pytest.raises(Corrupt):
            signer.open(msgspec.json.encode(envelope))

    @pytest.mark.parametrize(
        "envelope",
        [
            b"",
            b"{}",
            b"[]",
            b"\xff",
            b'{"payload":"!","payloadType":"t","signatures":[]}',
            b'{"payload":"e30=","payloadType":"t","signatures":[]}',
        ],
    )
    def test_what_is_no_envelope_is_corrupt(self, signer: Signer, envelope: bytes) -> None:
        with pytest.raises(Corrupt):
            signer.open(envelope)
