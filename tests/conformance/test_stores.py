"""Every store of flowlet, and that of the example, keeps the promises of `flowlet.store`."""

from __future__ import annotations

import os
import secrets
import sqlite3
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path

import postgres_server
import pytest
import redis_server
from custom_store import FolderStore
from dict_store import DictStore

from flowlet.store import Capabilities, Store
from flowlet.stores.coded import CodedStore
from flowlet.stores.memory import MemoryStore
from flowlet.stores.redis import RedisStore
from flowlet.stores.sqlite import SQLiteStore
from flowlet.testing import StoreConformance


class TestMemoryStore(StoreConformance):
    def open_store(self, place: Path, clock: Callable[[], float]) -> Store:
        return MemoryStore(clock=clock)


class TestSQLiteStore(StoreConformance):
    synchronous = "FULL"

    def open_store(self, place: Path, clock: Callable[[], float]) -> Store:
        return SQLiteStore(place / "store.db", synchronous=self.synchronous, clock=clock)

    def make_newer(self, place: Path) -> bool:
        connection = sqlite3.connect(place / "store.db")
        connection.execute("PRAGMA user_version = 999")
        connection.close()
        return True


class TestSQLiteStoreThatDoesNotWaitForTheDisk(TestSQLiteStore):
    synchronous = "NORMAL"


class TestBasicStore(StoreConformance):
    def open_store(self, place: Path, clock: Callable[[], float]) -> Store:
        return DictStore(clock=clock)


class TestBasicStoreThatCanDoLittle(StoreConformance):
    """The flags that are False are skipped, and refused when somebody asks all the same."""

    def open_store(self, place: Path, clock: Callable[[], float]) -> Store:
        store = DictStore(clock=clock)
        store.capabilities = Capabilities(leases=False, signals=False, max_payload=1 << 20)
        return store


class TestStoreOfTheExample(StoreConformance):
    def open_store(self, place: Path, clock: Callable[[], float]) -> Store:
        return FolderStore(place, clock=clock)


class Salted:
    """A codec that gives other bytes each time."""

    def encode(self, data: bytes) -> bytes:
        return secrets.token_bytes(4) + zlib.compress(data, 1)

    def decode(self, data: bytes) -> bytes:
        return zlib.decompress(data[4:])


class TestCodedStore(StoreConformance):
    def open_store(self, place: Path, clock: Callable[[], float]) -> Store:
        return CodedStore(SQLiteStore(place / "store.db", synchronous="NORMAL", clock=clock), Salted())


class TestRedisStore(StoreConformance):
    loops = ("asyncio",)
    takes_clock = False

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def server(cls) -> None:
        """Have a server. Its URL is left where other processes find it."""
        os.environ["FLOWLET_TEST_REDIS_HERE"] = redis_server.best()

    def open_store(self, place: Path, clock: Callable[[], float]) -> Store:
        return RedisStore(f"{os.environ['FLOWLET_TEST_REDIS_HERE']}&prefix={_prefix(place)}")

    def remove_store(self, place: Path) -> None:
        redis_server.remove(os.environ["FLOWLET_TEST_REDIS_HERE"], _prefix(place))

    def make_newer(self, place: Path) -> bool:
        with redis_server.client_of(os.environ["FLOWLET_TEST_REDIS_HERE"]) as client:
            client.set(f"{_prefix(place)}:schema", 999)
        return True


class TestPostgresStore(StoreConformance):
    loops = ("asyncio",)
    takes_clock = False

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def database(cls) -> None:
        """Have a database. Its URL is left where other processes find it."""
        postgres_server.database_url()

    def open_store(self, place: Path, clock: Callable[[], float]) -> Store:
        from flowlet.stores.postgres import PostgresStore

        return PostgresStore(postgres_server.database_url(), schema=_prefix(place))

    def remove_store(self, place: Path) -> None:
        postgres_server.run_sql(postgres_server.database_url(), f"DROP SCHEMA IF EXISTS {_prefix(place)} CASCADE")

    def make_newer(self, place: Path) -> bool:
        text = f"UPDATE {_prefix(place)}.flowlet_version SET version = 999"
        postgres_server.run_sql(postgres_server.database_url(), text)
        return True


def _prefix(place: Path) -> str:
    return "t" + uuid.uuid5(uuid.NAMESPACE_URL, str(place)).hex
