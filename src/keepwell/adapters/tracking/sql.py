"""The tracking store on SQLite or PostgreSQL: one class over one engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keepwell.adapters.tracking.database import Database, open_engine
from keepwell.adapters.tracking.experiments import SqlExperiments, SqlLoggedModels
from keepwell.adapters.tracking.files import SqlFiles
from keepwell.adapters.tracking.runs import SqlRuns

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine


class SqlTracking(SqlExperiments, SqlRuns, SqlLoggedModels, SqlFiles):
    """Implements core.ports.tracking.TrackingStore. Safe from any thread and process."""

    def __init__(self, engine: Engine) -> None:
        self._database = Database(engine)
        self._files = self

    def create_tables(self) -> None:
        """Make the tables where no migration has made them."""
        self._database.create_tables()

    def close(self) -> None:
        """Release connections. Closing twice is harmless."""
        self._database.engine.dispose()


def open_tracking(url: str) -> SqlTracking:
    """Open tracking in the database of this URL; its tables are made by the store's migrations."""
    return SqlTracking(open_engine(url))
