"""The example does its work once, however often and wherever it is killed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import anyio
import pytest

from flowlet import Flowlet

CONCURRENCY = 8
IN_FLIGHT = CONCURRENCY * 2  # steps under way at once: `gather` runs two of an order

TOTALS = {
    "orders": "204",
    "confirmed": "171, and 171 machines are in the state Shipped",
    "rolled back": "33: 17 card declined, 12 out of stock, 4 parcel too large",
    "rejected": "19 lines",
}


class Shop:
    """One database and one effects file, in a directory of their own."""

    def __init__(self, folder: Path, script: Path) -> None:
        self.script = script
        self.db = folder / "orders.db"
        self.effects_file = folder / "orders.effects"

    def start(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run the service to its end, and see that it did nothing that was on record."""
        command = [sys.executable, str(self.script), "--db", str(self.db), "--effects", str(self.effects_file)]
        command += ["--concurrency", str(CONCURRENCY), *options]
        recorded, done = set(self.recorded()), self.lines()
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert not recorded & {line.partition("\t")[0] for line in self.lines()[len(done) :]}
        return ended

    def run(self) -> dict[str, str]:
        """Let it finish, and return the summary."""
        done = self.start()
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(re.findall(r"^(\w+(?: \w+)?) {2,}(.*)$", done.stdout, re.MULTILINE))

    def crash(self, at: int) -> None:
        """Let it be killed."""
        done = self.start("--crash-at", str(at))
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
        assert done.stdout == ""

    def lines(self) -> list[str]:
        return self.effects_file.read_text().splitlines() if self.effects_file.exists() else []

    def effects(self) -> Counter[str]:
        """Return how often each line was written."""
        return Counter(self.lines())

    def recorded(self) -> dict[str, str]:
        """Return the status of every step on record, by idempotency key."""

        async def look() -> dict[str, str]:
            found: dict[str, str] = {}
            async with Flowlet(f"sqlite:///{self.db}") as viewer:
                for head in await viewer.store.scan(kind="run", limit=1000):
                    report = await viewer.handle(head.id).report()
                    found |= {f"{head.id}/{key}": step.status for key, step in report.steps.items()}
            return found

        return anyio.run(look)


@pytest.fixture(scope="module")
def script(root: Path) -> Path:
    return root / "examples" / "orders.py"


@pytest.fixture
def shop(tmp_path: Path, script: Path) -> Shop:
    return Shop(tmp_path, script)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, script: Path) -> tuple[dict[str, str], Counter[str]]:
    shop = Shop(tmp_path_factory.mktemp("undisturbed"), script)
    return shop.run(), shop.effects()


def totals(summary: dict[str, str]) -> dict[str, str]:
    return {name: summary[name] for name in TOTALS}


def first_number(text: str) -> int:
    return int(text.split(maxsplit=1)[0])


def check_recovery(shop: Shop, undisturbed: tuple[dict[str, str], Counter[str]], crashes: int) -> dict[str, str]:
    """Finish after crashes, and hold the result against an undisturbed run and the store against the effects."""
    before = shop.recorded()
    summary = shop.run()
    assert totals(summary) == totals(undisturbed[0])
    assert first_number(summary["recovered"]) == len(before)
    assert summary["recovered"].endswith("executed again of these: 0")
    effects = shop.effects()
    assert set(effects) == set(undisturbed[1])
    repeated = {line for line, count in effects.items() if count > 1}
    assert max(effects.values()) <= 1 + crashes
    assert len(repeated) <= crashes * IN_FLIGHT
    done = {key for key, status in shop.recorded().items() if status == "completed"}
    assert {line.partition("\t")[0] for line in effects} == done
    return summary


def test_an_undisturbed_run(undisturbed: tuple[dict[str, str], Counter[str]]) -> None:
    summary, effects = undisturbed
    assert totals(summary) == TOTALS
    assert summary["recovered"] == "0 steps of earlier runs; executed again of these: 0"
    assert set(effects.values()) == {1}


def test_bad_lines_are_reported_by_number_and_left_out(shop: Shop, tmp_path: Path) -> None:
    header = "order,customer,sku,quantity,price,currency,card"
    good = "o-1,ann@example.org,LAMP-01,1,39.90,EUR,tok-1"
    lines = [header, good, "o-2,ann@example.org,LAMP-01", good + ",more", good.replace(",1,", ",many,")]
    lines.append(good.replace("ann", "zo\xeb"))  # in an encoding that is not the file's
    file = tmp_path / "lines.csv"
    file.write_bytes("\n".join(lines).encode("latin-1"))
    done = shop.start("--csv", str(file))
    assert done.returncode == 0, done.stderr
    assert [int(n) for n in re.findall(r"^line (\d+): ", done.stderr, re.MULTILINE)] == [3, 4, 5, 6]
    assert re.search(r"^orders +1$", done.stdout, re.MULTILINE)


def test_a_file_without_a_good_line(shop: Shop, tmp_path: Path) -> None:
    file = tmp_path / "lines.csv"
    file.write_text("something,else\n1,2\n", encoding="utf-8")
    done = shop.start("--csv", str(file))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^orders +0$", done.stdout, re.MULTILINE)
    assert re.search(r"^rejected +1 lines$", done.stdout, re.MULTILINE)


def test_killed_at_137_then_resumed_then_run_again(
    shop: Shop, undisturbed: tuple[dict[str, str], Counter[str]]
) -> None:
    shop.crash(137)
    recorded = len(shop.recorded())
    assert 137 <= recorded <= 137 + IN_FLIGHT  # others may have become durable in the same commit
    summary = check_recovery(shop, undisturbed, crashes=1)
    effects = shop.effects()
    again = shop.run()
    assert totals(again) == totals(summary)
    assert first_number(again["executed"]) == 0
    assert shop.effects() == effects


@pytest.mark.parametrize("at", [1, 400, 900])
def test_killed_anywhere(at: int, shop: Shop, undisturbed: tuple[dict[str, str], Counter[str]]) -> None:
    shop.crash(at)
    check_recovery(shop, undisturbed, crashes=1)


def test_killed_again_and_again(shop: Shop, undisturbed: tuple[dict[str, str], Counter[str]]) -> None:
    for at in (90, 150, 210):
        shop.crash(at)
    check_recovery(shop, undisturbed, crashes=3)


def test_killed_while_another_process_takes_over(shop: Shop, undisturbed: tuple[dict[str, str], Counter[str]]) -> None:
    # Two services on one file: each order is checked out by one of them, and both see how it ended.
    command = [sys.executable, str(shop.script), "--db", str(shop.db), "--effects", str(shop.effects_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as other:
        shop.start("--crash-at", "100")
        output, _ = other.communicate(timeout=120)
    assert other.returncode == 0
    assert re.search(rf"^rolled back +{re.escape(undisturbed[0]['rolled back'])}$", output, re.MULTILINE)
    assert set(shop.effects()) == set(undisturbed[1])
