"""Families of interchangeable parts by name: ours as "module:attribute" strings, other people's by entry point."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from keepwell.core.errors import InvalidInput, NotFound, near_miss

if TYPE_CHECKING:
    from collections.abc import Mapping


class Catalog:
    """The members of one family (checks, strategies, predictors, stores).

    Nothing is imported until a member is asked for, so that a family costs no start-up time.
    Third parties add members under the entry-point group ``keepwell.<family>``.
    """

    def __init__(self, family: str, members: Mapping[str, str]) -> None:
        self.family = family
        self._members = dict(members)

    def names(self) -> list[str]:
        """List all members, ours and installed ones, sorted."""
        return sorted({*self._members, *(found.name for found in self._installed())})

    def load(self, name: str) -> Any:
        """Import and give one member. Raises NotFound with the nearest name, InvalidInput if it does not import."""
        target = self._members.get(name)
        if target is None:
            for found in self._installed():
                if found.name == name:
                    return found.load()
            raise NotFound(
                f"There is no {self.family} {name!r}.", todo=near_miss(name, self.names())
            )
        module, _, attribute = target.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise InvalidInput(
                f"The {self.family} {name!r} needs the package {error.name!r}.",
                todo="Install it, or the extra of keepwell that brings it.",
            ) from error

    def _installed(self) -> list[Any]:
        return list(entry_points(group=f"keepwell.{self.family}"))
