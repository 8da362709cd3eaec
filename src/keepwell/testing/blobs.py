"""What every blob storage must do. Subclass ``BlobsContract`` and give the fixture ``blobs``."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from keepwell.core.digest import digest_bytes
from keepwell.core.errors import Corrupt, NotFound
from keepwell.core.ports.blobs import Blobs

MISSING = digest_bytes(b"nobody kept this")


class BlobsContract:
    """The promises of ``keepwell.core.ports.blobs``."""

    @pytest.fixture
    def blobs(self) -> Blobs:
        """Give an empty blob storage."""
        message = "Give the fixture 'blobs' in your subclass."
        raise TypeError(message)

    def damage(self, blobs: Blobs, digest: str) -> None:
        """Change one byte behind the storage's back."""
        message = f"Say in your subclass how a byte of {digest} in {blobs} is changed."
        raise TypeError(message)

    @pytest.mark.parametrize("content", [b"", b"a", b"\0\xff" * 100_000])
    def test_what_was_put_is_got_back_under_its_digest(self, blobs: Blobs, content: bytes) -> None:
        digest = blobs.put(content)
        assert digest == digest_bytes(content)
        assert blobs.has(digest)
        assert blobs.get(digest) == content
        assert blobs.path(digest).read_bytes() == content

    def test_a_file_gives_the_same_blob_as_its_bytes(self, blobs: Blobs, tmp_path: Path) -> None:
        file = tmp_path / "given"
        file.write_bytes(b"content" * 1000)
        assert blobs.put_file(file) == blobs.put(b"content" * 1000)
        assert len(list(blobs.digests())) == 1

    def test_putting_twice_is_harmless(self, blobs: Blobs) -> None:
        assert blobs.put(b"x") == blobs.put(b"x")
        assert list(blobs.digests()) == [digest_bytes(b"x")]

    def test_what_is_missing_is_not_found(self, blobs: Blobs) -> None:
        assert not blobs.has(MISSING)
        for ask in (blobs.get, blobs.path, blobs.remove):
            with pytest.raises(NotFound):
                ask(MISSING)

    def test_all_blobs_are_listed(self, blobs: Blobs) -> None:
        kept = {blobs.put(bytes([n])) for n in range(20)}
        assert set(blobs.digests()) == kept

    def test_a_removed_blob_is_gone(self, blobs: Blobs) -> None:
        digest = blobs.put(b"x")
        other = blobs.put(b"y")
        blobs.remove(digest)
        assert not blobs.has(digest)
        assert list(blobs.digests()) == [other]

    def test_a_changed_byte_is_never_handed_on(self, blobs: Blobs) -> None:
        digest = blobs.put(b"content")
        self.damage(blobs, digest)
        with pytest.raises(Corrupt):
            blobs.get(digest)
        with pytest.raises(Corrupt):
            blobs.path(digest)

    def test_putting_the_content_again_heals_a_changed_byte(self, blobs: Blobs) -> None:
        digest = blobs.put(b"content")
        self.damage(blobs, digest)
        assert blobs.put(b"content") == digest
        assert blobs.get(digest) == b"content"

    def test_many_threads_may_put_the_same_content(self, blobs: Blobs) -> None:
        content = b"z" * 200_000
        failed: list[BaseException] = []

        def put() -> None:
            try:
                blobs.put(content)
            except BaseException as error:  # noqa: BLE001 - a thread's error would go unnoticed
                failed.append(error)

        threads = [threading.Thread(target=put) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert blobs.get(digest_bytes(content)) == content
        assert list(blobs.digests()) == [digest_bytes(content)]
