"""Who answers whom: a keyed hash puts each unit in one of 10,000 buckets, and the plan's weights part the buckets."""

from __future__ import annotations

from hashlib import blake2b

from keepwell.core.records.traffic import BUCKETS, Arm


def bucket_of(unit: str, salt: str) -> int:
    """Give the unit's bucket, 0 to 9,999: the same on every worker and after every restart.

    >>> bucket_of("N14228", "spring") == bucket_of("N14228", "spring")
    True
    """
    digest = blake2b(unit.encode(), digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest, "big") % BUCKETS


def choose(bucket: int, arms: tuple[Arm, ...]) -> int:
    """Give the position of the arm that answers a bucket.

    All arms but the first are laid out from bucket 0 upwards and the first (the champion) has the rest, so
    while the second arm grows, the units it has keep it and it only gains more.
    """
    upper = 0
    for position in range(1, len(arms)):
        upper += arms[position].weight
        if bucket < upper:
            return position
    return 0
