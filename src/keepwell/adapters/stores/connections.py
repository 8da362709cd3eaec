"""What the store asks of a driver: a connection to read by, one to write by, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from keepwell.adapters.stores.texts import Texts
from keepwell.core.errors import Conflict, Corrupt, InvalidInput, Unavailable

HEAD = "0008"
"""The newest revision under ``migrations/versions``; a test compares the two."""


class Connection(Protocol):
    """Runs statements."""

    def execute(self, text: Any, values: Sequence[Any] = ..., /) -> Any:
        """Run one statement and give its cursor."""
        ...


class Connections(Protocol):
    """One database's connections. Safe from any thread."""

    texts: Texts

    @property
    def engine(self) -> Any:
        """SQLAlchemy's engine on the same database."""
        ...

    def revision(self) -> str:
        """Give the schema's revision, or an empty text if there is no schema yet."""
        ...

    def translated(self) -> AbstractContextManager[None]:
        """Turn this driver's errors into ones that say what to do."""
        ...

    def reading(self) -> AbstractContextManager[Connection]:
        """Lend a connection on which each statement sees what is committed."""
        ...

    def writing(self) -> AbstractContextManager[Connection]:
        """Lend the one connection that may write, in a transaction that ends with the block."""
        ...

    def close(self) -> None:
        """Release all connections."""
        ...


@contextmanager
def translated(driver: Any, where: str) -> Iterator[None]:
    """Turn a driver's errors (the classes of PEP 249, by name) into ones that say what to do."""
    try:
        yield
    except driver.IntegrityError as error:
        raise Conflict(f"Another record stands in the way: {error}.", where=where) from error
    except (driver.DataError, driver.ProgrammingError, OverflowError) as error:
        if "closed" in str(error):
            raise Unavailable("The store was closed.", where=where) from error
        raise InvalidInput(f"The database cannot take a value: {error}.", where=where) from error
    except driver.OperationalError as error:
        raise Unavailable(
            f"The database did not answer: {error}.",
            where=where,
            todo="See that it exists and may be written, that its disk is not full, and that nobody holds it locked.",
        ) from error
    except driver.Error as error:
        said = str(error)
        if "malformed" in said or "not a database" in said:
            raise Corrupt(
                f"The file is damaged: {said}.",
                where=where,
                todo="Restore it from a backup, or move it away to begin anew.",
            ) from error
        raise Unavailable(f"The database refused: {said}.", where=where) from error
