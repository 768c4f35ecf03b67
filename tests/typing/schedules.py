"""`every`: what is put on a schedule stays what it was."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from flowlet import Flowlet, Registry
from flowlet.runtime.handle import Handle
from flowlet.runtime.schedule_handle import Schedule, ScheduleInfo

flow = Flowlet()
registry = Registry()


@flow.every(timedelta(minutes=5), args=("eu",), missed="all")
@flow.every("0 2 * * *", name="nightly", args=["us"], zone="Europe/Berlin", overlap="skip")
@flow.saga
async def clean(region: str, tick: datetime) -> int:
    return 1


async def use() -> None:
    assert_type(await clean("eu", datetime.now(UTC)), int)
    await clean(1)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    assert_type(await (await flow.start(clean, "eu", datetime.now(UTC))).result(), int)
    assert_type(flow.schedules(), AsyncIterator[ScheduleInfo])
    schedule = flow.schedule("clean")
    assert_type(schedule, Schedule)
    assert_type(await schedule.trigger(), Handle[Any])
    assert_type((await schedule.info()).next, datetime | None)
    assert_type(await schedule.ticks(3), list[datetime])


registry.every(60, start=datetime.now(UTC))(clean)
registry.every(60, missed="never")(clean)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
registry.every(60, overlap="queue")(clean)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
registry.every(None)(clean)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
