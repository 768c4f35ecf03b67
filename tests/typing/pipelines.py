"""What can be said of a pipeline that is made of steps, and that its result is inferred from the last one."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from flowlet import Flowlet, Registry, step
from flowlet.runtime.report import RunReport, StepReport

flow = Flowlet(pipeline_timeout=60)
registry = Registry()


class Row:
    n: int = 0


@step
async def extract(path: str) -> list[Row]: ...


async def audit(path: str) -> None: ...


def clean(extract: Row) -> Row: ...


@step
async def load(clean: list[Row]) -> int: ...


async def close(load: int | None, error: Exception | None) -> None: ...


def is_new(path: str) -> bool: ...


def is_any(clean: list[Row], path: str) -> bool: ...


def mend(error: Exception, extract: Row) -> Row: ...


etl = flow.pipeline(
    "etl",
    extract,
    audit,
    clean,
    load,
    version=2,
    deadline=timedelta(hours=1),
    timeout=60,
    max_concurrency=4,
    needs={load: [audit], "clean": "audit"},
    when={audit: is_new, "load": is_any},
    on_error={clean: mend, "audit": "skip", load: 0, "*": lambda error: error.args},
    each={clean: "extract"},
    finally_=[close],
)
sync_last = registry.pipeline("sync-last", extract, clean, each={"clean": extract}, finally_=close, timeout=None)
nested = flow.pipeline("nested", etl, audit, needs={audit: etl})  # Any to mypy, since `etl` takes anything
everything = flow.pipeline("everything", extract, load, on_error="skip")
value = flow.pipeline("value", load, on_error=3, needs={"load": ["extract", audit]})


@flow.pipeline(timeout=5, name="body")
async def body(path: str) -> int:
    return len(await extract(path))


flow.pipeline("bad", extract, max_concurrency="4")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
flow.pipeline("bad", extract, timeout="60")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
flow.pipeline("bad", extract, needs={extract: 3})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
flow.pipeline("bad", extract, each={extract: 3})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType, reportCallIssue]
flow.pipeline("bad", extract, finally_=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
flow.pipeline(body, each={})  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


async def results() -> None:
    assert_type(await etl("rows.csv"), int)
    assert_type(await flow.execute(etl, "rows.csv", id="e"), int)
    assert_type(await sync_last("rows.csv"), Row)
    assert_type(await body("rows.csv"), int)
    handle = await flow.start(etl, "rows.csv")
    report = await handle.report()
    assert_type(report, RunReport)
    assert_type(report.steps["clean[0]"], StepReport)
    assert_type(report.steps["clean"].status, str)
