"""A pipeline over a CSV file of weather stations, which can be killed anywhere and goes on where it was.

    python examples/etl.py                         # prints what the stations measured, and what each step did
    python examples/etl.py --crash-in summarize    # kills itself in the middle of that step; run it again without

Two files are read side by side, each station is summarized by itself, one that nobody knows is left out, and the
result goes into a table of a SQLite file. The run's id comes from the file's name: run again, it is not done again.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import sqlite3
import statistics
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Annotated

import anyio
import msgspec
from msgspec import Meta, Struct

from flowlet import Flowlet, Registry, Retry, current_run, provided, step
from flowlet.errors import RunNotFound
from flowlet.runtime.report import RunReport

HERE = Path(__file__).parent
registry = Registry()


# ---------------------------------------------------------------- what comes in, and what goes out
class Reading(Struct, frozen=True, forbid_unknown_fields=True):
    """A line of the file; msgspec checks it."""

    time: datetime
    station: Annotated[str, Meta(pattern=r"^[A-Z]{3}$")]
    temperature: Annotated[float, Meta(ge=-60, le=60)]
    humidity: Annotated[int, Meta(ge=0, le=100)]


class Station(Struct, frozen=True):
    name: str
    altitude: int
    offset: float  # degrees by which its thermometer is wrong


class Series(Struct, frozen=True):
    station: str
    readings: list[Reading]


class Summary(Struct, frozen=True):
    station: str
    name: str
    readings: int
    lowest: float
    mean: float
    highest: float


class Outside(Struct):
    """The world outside of the pipeline: what it writes to, and what this process has done there.

    Attributes:
        crash_in: the step in which the process kills itself, without a goodbye.
    """

    table: Path
    log: Path
    crash_in: str | None = None
    executed: list[str] = []

    def enter(self) -> None:
        key = current_run().idempotency_key.partition("/")[2]
        self.executed.append(key)
        if key.split("[")[0] == self.crash_in and key not in ("summarize[0]", "summarize[1]"):
            os.kill(os.getpid(), signal.SIGKILL)


def lines_of(path: str) -> Iterator[tuple[int, Reading | str]]:
    """Yield the number of each line with its reading, or with what is wrong with it."""
    seen: set[tuple[datetime, str]] = set()
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        for row in rows:
            try:
                reading = msgspec.convert(row, Reading, strict=False)
            except msgspec.ValidationError as error:
                yield rows.line_num, str(error)
                continue
            is_new = (reading.time, reading.station) not in seen
            seen.add((reading.time, reading.station))
            yield rows.line_num, reading if is_new else "is there twice"


# ---------------------------------------------------------------- the steps
def extract(path: str, outside: Outside = provided) -> list[Series]:  # a plain def runs in a thread
    outside.enter()
    found: dict[str, Series] = {}
    for _, reading in lines_of(path):
        if isinstance(reading, Reading):
            found.setdefault(reading.station, Series(reading.station, [])).readings.append(reading)
    return [found[station] for station in sorted(found)]


def audit(path: str, outside: Outside = provided) -> list[str]:
    outside.enter()
    return [f"line {number}: {reading}" for number, reading in lines_of(path) if isinstance(reading, str)]


def stations(directory: str, outside: Outside = provided) -> dict[str, Station]:
    outside.enter()
    with open(directory, newline="", encoding="utf-8") as file:
        return {row.pop("station"): msgspec.convert(row, Station, strict=False) for row in csv.DictReader(file)}


async def summarize(extract: Series, stations: dict[str, Station], outside: Outside = provided) -> Summary:
    outside.enter()
    if extract.station not in stations:
        raise LookupError(f"nobody knows station {extract.station}")
    station = stations[extract.station]
    degrees = [reading.temperature - station.offset for reading in extract.readings]
    mean = round(statistics.fmean(degrees), 2)
    return Summary(extract.station, station.name, len(degrees), round(min(degrees), 1), mean, round(max(degrees), 1))


async def warn(summarize: list[Summary], outside: Outside = provided) -> list[str]:
    outside.enter()
    return [s.name for s in summarize if s.lowest < 0]


@step(retry=Retry(attempts=3, wait=0.1, on=sqlite3.OperationalError), timeout=10)
def load(summarize: list[Summary], outside: Outside = provided) -> int:
    outside.enter()
    with closing(sqlite3.connect(outside.table)) as table, table:  # done twice, it is as if it was done once
        table.execute("CREATE TABLE IF NOT EXISTS summaries (station PRIMARY KEY, name, readings, low, mean, high)")
        rows = [msgspec.structs.astuple(summary) for summary in summarize]
        table.executemany("INSERT OR REPLACE INTO summaries VALUES (?, ?, ?, ?, ?, ?)", rows)
    return len(rows)


async def log(path: str, load: int | None, error: Exception | None, outside: Outside = provided) -> None:
    outside.enter()
    with outside.log.open("a", encoding="utf-8") as file:
        file.write(f"{current_run().id}: {f'failed: {error}' if error else f'{load} stations of {path}'}\n")


etl = registry.pipeline(
    "etl",
    *(extract, audit, stations, summarize, warn, load),
    each={summarize: "extract"},  # a step for each station
    needs={load: audit},  # comes after it without taking its result
    when={warn: lambda summarize: any(s.lowest < 0 for s in summarize)},
    on_error={summarize: "skip"},  # leaves the station out
    finally_=log,  # whatever happens
    max_concurrency=4,
    timeout=60,
)


# ---------------------------------------------------------------- the command
async def run(options: argparse.Namespace) -> None:
    outside = Outside(options.table, options.log, options.crash_in)
    id = f"etl:{options.csv.name}"
    earlier = await recorded(f"sqlite:///{options.db}", id)
    flow = Flowlet(f"sqlite:///{options.db}", registry=registry)
    flow.provide(Outside, outside)
    async with flow:
        await flow.execute(etl, str(options.csv), str(options.stations), id=id)
        show(await flow.handle(id, etl).report())
    print(f"\nrecovered {len(earlier)} steps of earlier runs, executed {len(outside.executed)} now")


async def recorded(store: str, id: str) -> list[str]:
    """Return the steps on record. A `Flowlet` without definitions only looks."""
    async with Flowlet(store) as viewer:
        try:
            steps = (await viewer.handle(id).report()).steps.values()
        except RunNotFound:
            return []
    return [s.name for s in steps if s.attempts and not is_whole(s.name)]


def is_whole(name: str) -> bool:
    """Tell whether a report is that of all items of a step together."""
    return name == "summarize"


def show(report: RunReport) -> None:
    steps = report.steps
    print("station              readings   lowest     mean  highest")
    for s in steps["summarize"].value:
        print(f"{s.station}  {s.name:14} {s.readings:9} {s.lowest:8.1f} {s.mean:8.1f} {s.highest:8.1f}")
    print(f"\nfrost at        {', '.join(steps['warn'].value or ['none'])}")
    print(f"rejected lines  {len(steps['audit'].value)}, such as {'; '.join(steps['audit'].value[:2])}")
    print("\nstep          status     tries       ms")
    for s in steps.values():
        note = f"  {s.error}" if s.error and not is_whole(s.name) else ""
        print(f"{s.name:13} {s.status:10} {s.attempts:5} {s.seconds * 1000:8.1f}{note}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Summarize a CSV file of weather stations, once.")
    parser.add_argument("--csv", type=Path, default=HERE / "weather.csv", help="the readings")
    parser.add_argument("--stations", type=Path, default=HERE / "stations.csv", help="what is known of the stations")
    parser.add_argument("--db", default="etl.db", help="the SQLite file that keeps the work")
    parser.add_argument("--table", type=Path, default=Path("weather.db"), help="the SQLite file for the result")
    parser.add_argument("--log", type=Path, default=Path("etl.log"), help="the file with a line for each run")
    parser.add_argument("--crash-in", metavar="STEP", help="SIGKILL this process in the middle of a step")
    anyio.run(run, parser.parse_args())


if __name__ == "__main__":
    main()
