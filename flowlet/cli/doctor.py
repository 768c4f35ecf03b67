"""``flowlet doctor``: a list of what is in order here, and what to do about the rest.

Law: it reads and changes nothing, and a check that fails does not keep the others from being made.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Literal

import click
import msgspec

from flowlet.cli.listing import pages
from flowlet.cli.options import APP, STORE
from flowlet.cli.output import Output, paint, text_of, time_of, time_text
from flowlet.cli.place import Place
from flowlet.cli.program import own_version
from flowlet.errors import ConfigError, FlowletError, StoreNotFound, StoreUnavailable
from flowlet.store import Head, Store

_NEEDED: Final = ("anyio", "msgspec", "structlog", "tenacity")
_EXTRAS: Final = {
    "postgres": ("asyncpg",),
    "redis": ("redis",),
    "restate": ("restate-sdk",),
    "cron": ("cronsim", "tzdata"),
    "yaml": ("PyYAML",),
    "cli": ("click", "rich"),
    "otel": ("opentelemetry-api",),
    "web": ("starlette",),
}
_STUCK: Final = ("parked", "needs_attention", "compensation_failed")
_LATE: Final = 60.0
"""Seconds after which something that is due, and that nobody has, is worth a word."""

_APART: Final = 1.0
"""Seconds between two clocks that are worth a word."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a check has found.

    Attributes:
        do: what to do about it, if something is to be done.
    """

    check: str
    status: Literal["ok", "info", "warning", "problem"]
    found: str
    do: str | None = None


@click.command()
@click.option("--store", metavar="URL", help=STORE)
@click.option("--app", metavar="MODULE:NAME", help=APP)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document: a list of findings.")
def doctor(store: str | None, app: str | None, as_json: bool) -> int:
    """Say what is in order here, and what to do about the rest.

    JSON: a list of check, status (ok, info, warning, problem), found, do. Exit code 1 if there is a problem, 3 if the
    store is not there or does not answer.
    """
    output = Output(as_json)
    findings = [*_look_at_python(), *_look_at_extras(), *_look_at_config()]
    code = 0
    try:
        place = Place(store, app)
        findings += place.read(lambda found: _look_at_store(found, place))
    except (StoreUnavailable, StoreNotFound) as error:
        code = 3
        do = "start the server, or correct the URL"
        if isinstance(error, StoreNotFound):
            do = "enter a Flowlet on it, or make it with `flowlet store migrate`; or correct the URL"
        findings.append(Finding(check="store", status="problem", found=str(error), do=do))
    except click.UsageError as error:
        findings.append(Finding(check="store", status="info", found="none is configured", do=error.message))
    except FlowletError as error:
        if all(finding.found != str(error) for finding in findings):  # the configuration's was told already
            findings.append(Finding(check="store", status="problem", found=str(error)))
    if output.json:
        output.document([msgspec.structs.asdict(finding) for finding in findings])
    else:
        _print(output, findings)
    return code or int(any(finding.status == "problem" for finding in findings))


def _print(output: Output, findings: Sequence[Finding]) -> None:
    wide = max(len(finding.check) for finding in findings)
    for finding in findings:
        mark = paint(finding.status) + " " * (7 - len(finding.status))
        output.say(f"{mark}  {finding.check.ljust(wide)}  {text_of(finding.found)}")
        if finding.do is not None:
            output.say(f"{' ' * (wide + 11)}-> {text_of(finding.do)}")


# ---------------------------------------------------------------- here
def _look_at_python() -> Iterator[Finding]:
    found = f"{platform.python_version()} ({platform.python_implementation()} on {platform.system()})"
    yield Finding(check="python", status="ok", found=found)
    yield Finding(check="flowlet", status="ok", found=own_version())
    for name in _NEEDED:
        installed = _version(name)
        if installed is None:
            do = f"pip install {name}"
            yield Finding(check=name, status="problem", found="is not installed", do=do)
        else:
            yield Finding(check=name, status="ok", found=installed)


def _look_at_extras() -> Iterator[Finding]:
    for extra, names in _EXTRAS.items():
        versions = {name: _version(name) for name in names}
        if all(versions.values()):
            found = ", ".join(f"{name} {installed}" for name, installed in versions.items())
            yield Finding(check=f"extra {extra}", status="ok", found=found)
        else:
            do = f"if you need it: pip install 'flowlet[{extra}]'"
            yield Finding(check=f"extra {extra}", status="info", found="is not installed", do=do)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _look_at_config() -> Iterator[Finding]:
    from flowlet.cli.place import hide_password
    from flowlet.config import Config

    try:
        config = Config.load()
    except (ConfigError, FlowletError) as error:
        yield Finding(check="configuration", status="problem", found=str(error))
        return
    origin: Any = getattr(config, "origin", None)
    where = None if origin is None else origin("store")
    yield Finding(
        check="configuration", status="ok", found=f"store {hide_password(config.store)} ({where or 'default'})"
    )
    if not config.enabled:
        where = (origin and origin("enabled")) or "the configuration"
        do = "Flowlets that go by it start nothing; take it away to enable them"
        yield Finding(check="enabled", status="warning", found=f"flowlet is disabled by {where}", do=do)


# ---------------------------------------------------------------- the store
async def _look_at_store(store: Store, place: Place) -> list[Finding]:
    before = time.time()
    now = await store.now()
    apart = now - (before + time.time()) / 2
    open_heads = [head async for page in pages(store, None) for head in page if head.closed is None]
    findings = [Finding(check="store", status="ok", found=f"{place.shown} answers"), _look_at_abilities(store, place)]
    do = "leases go by the store's clock; set this host's, if it is the one that is wrong (NTP)"
    status: Literal["ok", "warning"] = "ok" if abs(apart) < _APART else "warning"
    far = f"{apart:+.3f} s from this host's" if abs(apart) >= 0.001 else "that of this host"
    findings.append(Finding(check="clock", status=status, found=far, do=None if status == "ok" else do))
    findings += await _look_at_workers(store, open_heads, now)
    findings += _look_at_stuck(open_heads)
    findings += _look_at_late(open_heads, now)
    findings += _look_at_code(open_heads, place)
    return findings


def _look_at_abilities(store: Store, place: Place) -> Finding:
    bare = place.bare()
    able = bare.capabilities if type(store).__name__ == "SQLiteOnlooker" else store.capabilities
    words = [
        name.replace("_", " ")
        for name in ("multi_process", "transactional", "leases", "signals")
        if getattr(able, name)
    ]
    lasting = (
        "what is acknowledged survives a crash" if able.durable else "what is acknowledged may be lost with the server"
    )
    if "durability=process" in (place.url or ""):
        lasting = "what is acknowledged survives the process, and perhaps not a loss of power"
    do = None if able.durable else "Redis: appendonly yes, appendfsync always, and ?durability=power in the URL"
    status: Literal["ok", "warning"] = "ok" if able.durable else "warning"
    return Finding(check="abilities", status=status, found=f"{', '.join(words)}; {lasting}", do=do)


async def _look_at_workers(store: Store, heads: Sequence[Head], now: float) -> list[Finding]:
    known: Any = getattr(store, "workers", None)
    owners = Counter(head.owner for head in heads if head.owner is not None)
    if known is None:
        names = [f"{name} ({count} runs and machines)" for name, count in owners.items()]
        found = ", ".join(names) or "none owns anything now"
        return [Finding(check="workers", status="info", found=found)]
    rows = await known()
    living = [name for name, expires in rows if expires > now]
    findings = [Finding(check="workers", status="ok", found=f"{name}, which owns {owners[name]}") for name in living]
    for name, expires in rows:
        if expires <= now:
            found = f"{name} has not been heard of since {time_text(time_of(expires))}, and owns {owners[name]}"
            do = "the next process that enters a Flowlet takes over what it had"
            findings.append(Finding(check="workers", status="warning", found=found, do=do))
    if not findings:
        rest = "what is due waits until a process enters its Flowlet" if heads else None
        found = "none on record: no process has it open"
        findings.append(Finding(check="workers", status="info", found=found, do=rest))
    return findings


def _look_at_stuck(heads: Sequence[Head]) -> Iterator[Finding]:
    stuck = [head for head in heads if head.kind == "run" and head.status in _STUCK]
    if not stuck:
        yield Finding(check="runs", status="ok", found="none waits for somebody to decide")
    for status in _STUCK:
        ids = [head.id for head in stuck if head.status == status]
        if ids:
            some = ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
            do = f"flowlet runs show {ids[0]} says why, and what can be done"
            yield Finding(check="runs", status="problem", found=f"{len(ids)} are {status}: {some}", do=do)


def _look_at_late(heads: Sequence[Head], now: float) -> Iterator[Finding]:
    late = [h for h in heads if h.wake is not None and h.wake < now - _LATE and h.owner is None]
    late = [h for h in late if now - h.updated > _LATE]
    by_name = Counter((h.kind, h.definition, h.definition_version) for h in late)
    for (kind, name, number), count in by_name.items():
        found = f"{count} of {kind} {name!r} version {number} are due for more than a minute, and nobody has them"
        yield Finding(
            check="due", status="warning", found=found, do="run a process whose Flowlet includes this version"
        )
    if not late:
        yield Finding(check="due", status="ok", found="nothing is overdue")


def _look_at_code(heads: Sequence[Head], place: Place) -> Iterator[Finding]:
    """Say which open runs the application cannot go on with."""
    if place.flow is None:
        return
    runnable = set(place.flow.registry.runnable())
    open_runs = Counter((h.kind, h.definition, h.definition_version) for h in heads if h.kind in ("run", "machine"))
    missing = {key: n for key, n in open_runs.items() if key[0] == "run" and key not in runnable}
    for (_, name, number), count in missing.items():
        found = f"{count} open runs are of {name!r} version {number}, which --app does not include"
        do = "keep the code of that version included until they have ended"
        yield Finding(check="code", status="warning", found=found, do=do)
    if not missing:
        yield Finding(check="code", status="ok", found="--app includes what all open runs need")
