"""Tokens: how a user proves who they are. The text is shown once; only its hash is kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import TYPE_CHECKING

import msgspec

from keepwell.core.clock import DAY
from keepwell.core.errors import InvalidInput, NotFound, Refused, near_miss
from keepwell.core.records.lifecycle import Token, User

if TYPE_CHECKING:
    from keepwell.core.clock import Clock, Time
    from keepwell.core.ports.store import Reader, Store

_TEXT = re.compile(r"kw_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
_NOBODYS = "0" * 64


def hash_token(text: str) -> str:
    """Give the form in which a token is kept."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def create_token(
    user: str, *, by: str, days: float, label: str, store: Store, clock: Clock
) -> tuple[str, Token]:
    """Make a token of a user and give its text, this once, with its row.

    ``days`` is how long it is good for, 0 until it is revoked. Raises NotFound for an unknown user,
    Refused unless ``by`` is that user or an admin, InvalidInput for a length of time that is none.
    """
    _may(by, user, store=store)
    if not 0 <= days <= 36_500:
        raise InvalidInput(
            f"{days:g} days is no length of time for a token.", todo="Give 0 to 36,500 days."
        )
    now = clock.now()
    identity = secrets.token_hex(4)
    text = f"kw_{identity}_{secrets.token_urlsafe(32)}"
    token = Token(
        id=identity,
        user=user,
        label=label,
        hash=hash_token(text),
        created=now,
        expires=now + round(days * DAY) if days else None,
    )
    with store.transaction(actor=by) as transaction:
        transaction.add(token, reason=f"a token for {user}{f' ({label})' if label else ''}")
    return text, token


def revoke_token(identity: str, *, by: str, reason: str, store: Store, clock: Clock) -> Token:
    """End a token now. Raises NotFound; Refused unless ``by`` is its user or an admin."""
    token = store.get(Token, identity)
    if token is None:
        raise NotFound(
            f"There is no token {identity!r}.",
            todo=near_miss(identity, [known.id for known in store.find(Token)]),
        )
    _may(by, token.user, store=store)
    if token.revoked is not None:
        return token
    revoked = msgspec.structs.replace(token, revoked=clock.now(), revision=token.revision + 1)
    with store.transaction(actor=by) as transaction:
        transaction.replace(revoked, reason=reason or "revoked")
    return revoked


def _may(by: str, user: str, *, store: Reader) -> None:
    if store.get(User, user) is None:
        raise NotFound(
            f"There is no user {user!r} in this project.",
            todo=near_miss(user, [known.name for known in store.find(User)])
            + " Declare users under [users] in keepwell.toml.",
        )
    acting = store.get(User, by)
    if by != user and (acting is None or "admin" not in acting.roles):
        raise Refused(
            f"{by} may not change the tokens of {user}.",
            todo=f"Act as {user} or as a user with the role 'admin', with --as NAME.",
        )


def user_of(text: str, *, store: Reader, now: Time) -> str:
    """Name the user whose token this is. Raises Refused for one that is unknown, expired or revoked."""
    form = _TEXT.fullmatch(text)
    token = store.get(Token, form[1]) if form else None
    # Compared in constant time, and also where there is nothing to compare with.
    same = hmac.compare_digest(token.hash if token else _NOBODYS, hash_token(text))
    if token is None or not same:
        raise Refused("The token is unknown.", todo="See that all of it was copied.")
    if token.revoked is not None:
        raise Refused(f"The token {token.id} was revoked.", todo="Ask for a new one.")
    if token.expires is not None and token.expires <= now:
        raise Refused(f"The token {token.id} has expired.", todo="Ask for a new one.")
    return token.user


def needs_token(user: str, *, store: Reader) -> bool:
    """Tell whether this user must prove themselves: from their first token on.

    An expired or a revoked one counts too: else taking a lost token away would open the door that it guarded.
    """
    return bool(store.count(Token, {"user": user}))
