"""A project's SQLite database: its tables, and transactions that any thread may begin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import OperationalError

from ..core.errors import ResourceError

TABLES = sql.MetaData()
FACTS = sql.Table("facts", TABLES, sql.Column("key", sql.String, primary_key=True), sql.Column("value", sql.JSON))
CASES = sql.Table(
    "cases",
    TABLES,
    sql.Column("number", sql.Integer, primary_key=True),
    sql.Column("name", sql.String, unique=True, nullable=False),
    sql.Column("status", sql.String, nullable=False, default="todo"),
    sql.Column("head", sql.String),
    sql.Column("updated", sql.Float),
    sql.Column("priority", sql.Float),
    sql.Column("upload", sql.String),
)
VERSIONS = sql.Table(
    "versions",
    TABLES,
    sql.Column("id", sql.String, primary_key=True),
    sql.Column("case", sql.Integer, sql.ForeignKey("cases.number"), nullable=False, index=True),
    sql.Column("parent", sql.String),
    sql.Column("user", sql.String, nullable=False),
    sql.Column("at", sql.Float, nullable=False),
    sql.Column("origin", sql.JSON, nullable=False),
    sql.Column("note", sql.String, nullable=False, default=""),
)
COMMENTS = sql.Table(
    "comments",
    TABLES,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("case", sql.Integer, sql.ForeignKey("cases.number"), nullable=False, index=True),
    sql.Column("user", sql.String, nullable=False),
    sql.Column("at", sql.Float, nullable=False),
    sql.Column("text", sql.String, nullable=False),
)
MODELS = sql.Table(
    "models",
    TABLES,
    sql.Column("id", sql.String, primary_key=True),
    sql.Column("title", sql.String, nullable=False),
    sql.Column("run", sql.String, nullable=False),
)


class Database:
    """The tables in a file, which is made where there is none."""

    def __init__(self, file: Path):
        self.engine = sql.create_engine(f"sqlite:///{file}", connect_args={"timeout": 20})
        sql.event.listen(self.engine, "connect", _prepare)
        sql.event.listen(self.engine, "begin", _begin)
        with self.writing() as db:
            TABLES.create_all(db)

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[sql.Connection]:
        """A transaction that nobody else writes beside. Raises ResourceError where the disk is full or cannot be written to."""
        try:
            with self.engine.connect().execution_options(writes=True) as db, db.begin():
                yield db
        except OperationalError as error:
            text = str(error.orig)
            if any(word in text for word in ("full", "disk I/O", "readonly", "locked")):
                raise ResourceError("the project's database cannot be written", found=text, fix="free some space and save again") from error
            raise

    @contextmanager
    def reading(self) -> Iterator[sql.Connection]:
        with self.engine.connect() as db, db.begin():
            yield db


def fact(db: sql.Connection, key: str) -> Any:
    """What is kept under a key; None where nothing is."""
    return db.scalar(sql.select(FACTS.c.value).where(FACTS.c.key == key))


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we begin transactions ourselves
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sql.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")
