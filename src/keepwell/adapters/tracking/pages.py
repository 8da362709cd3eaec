"""Page tokens: an offset in a form that says which search it belongs to."""

from __future__ import annotations

import base64
import binascii

import msgspec

from keepwell.core.digest import digest_of
from keepwell.core.errors import InvalidInput


class _Token(msgspec.Struct):
    offset: int
    search: str


def offset_of(token: str, *search: object) -> int:
    """Give where to go on. Raises InvalidInput if the token is of another search or of nobody's making."""
    if not token:
        return 0
    try:
        read = msgspec.json.decode(base64.urlsafe_b64decode(token), type=_Token)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise InvalidInput(
            "The page token cannot be read.", todo="Begin again without one."
        ) from error
    if read.offset < 0 or read.search != digest_of(search)[7:19]:
        raise InvalidInput(
            "The page token belongs to another search.",
            todo="Use the same filter and order for every page, or begin again without a token.",
        )
    return read.offset


def token_at(offset: int, *search: object) -> str:
    """Make the token of the page that begins at this offset."""
    token = _Token(offset, digest_of(search)[7:19])
    return base64.urlsafe_b64encode(msgspec.json.encode(token)).decode()
