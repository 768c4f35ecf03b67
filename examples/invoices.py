"""Sends many invoices as one bulk operation that survives ``kill -9``.

    python examples/invoices.py                     # sends 5,000 invoices and prints a report
    python examples/invoices.py --crash-at 1700     # kills itself after 1,700; run it again without: it sends the rest

Some customers have no address: each of them is a line in the report, and holds up nobody else. Start it in two
terminals at once, and both share the work. A letter is a line in an append-only file, under the invoice's idempotency
key: what was under way when the process died is sent again, under the same key, by which a mail server drops it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import anyio
from msgspec import Struct

from flowlet import Flowlet, Retry, Run, provided
from flowlet.core.bulk import Progress


class Invoice(Struct, frozen=True):
    number: int
    customer: str
    total: Decimal


class NoAddress(Exception):
    """The customer cannot be reached."""


class MailServer:
    """Writes letters to a file, and is busy now and then.

    Args:
        crash_at: kill this process after so many letters; 0 for never.
    """

    def __init__(self, outbox: Path, crash_at: int) -> None:
        self._outbox = outbox
        self._crash_at = crash_at
        self._letters = self._calls = 0

    async def deliver(self, key: str, text: str) -> None:
        """Send a letter."""
        self._calls += 1
        await anyio.sleep(0.002)
        if self._calls % 100 == 99:
            raise ConnectionError("the mail server is busy")
        descriptor = os.open(self._outbox, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{key}\t{text}\n".encode())
        finally:
            os.close(descriptor)
        self._letters += 1
        if self._letters == self._crash_at:
            os.kill(os.getpid(), signal.SIGKILL)


async def send_invoice(invoice: Invoice, server: MailServer = provided, run: Run = provided) -> str:
    """Send one invoice; what it returns is recorded."""
    if "@" not in invoice.customer:
        raise NoAddress(f"{invoice.customer} has no address")
    await server.deliver(run.idempotency_key, f"{invoice.customer}: please pay {invoice.total}")
    return invoice.customer


def invoices(count: int) -> Iterator[Invoice]:
    """Yield the month's invoices, always the same ones: one in a hundred cannot be sent."""
    for number in range(count):
        name = f"customer {number}" if number % 100 == 50 else f"customer-{number}@example.com"
        yield Invoice(number, name, Decimal(number % 1000) + Decimal("9.90"))


def count_letters(outbox: Path) -> Counter[str]:
    """Return how many letters there are under each key."""
    return Counter(line.partition("\t")[0] for line in outbox.read_text(encoding="utf-8").splitlines())


def show(progress: Progress) -> None:
    """Tell how far it is, in one line that is written again and again."""
    rest = "" if progress.eta is None else f", {progress.eta:.0f} s left"
    line = f"{progress.done:,} of {progress.total or 0:,} invoices, {progress.failed} failed{rest}"
    print(f"\r{line:<70}", end="", file=sys.stderr, flush=True)


async def main(db: Path, outbox: Path, count: int, concurrency: int, crash_at: int) -> int:
    flow = Flowlet(f"sqlite:///{db}")
    flow.provide(MailServer, MailServer(outbox, crash_at))
    async with flow:
        report = await flow.bulk(
            send_invoice,
            list(invoices(count)),
            id=f"invoices-{count}",
            concurrency=concurrency,
            retry=Retry(attempts=3, wait=0.01, on=ConnectionError),
            timeout=10,
            progress=show if sys.stderr.isatty() else None,
        )
    letters = count_letters(outbox)
    print(f"\n{report}" if sys.stderr.isatty() else report)
    print(f"letters: {letters.total():,} for {len(letters):,} invoices")
    return 0 if len(letters) == report.succeeded else 1


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--db", type=Path, default=Path("invoices.db"), help="database (default: %(default)s)")
    options.add_argument("--outbox", type=Path, default=Path("invoices.outbox"), help="letters (default: %(default)s)")
    options.add_argument("--count", type=int, default=5000, help="how many invoices (default: %(default)s)")
    options.add_argument("--concurrency", type=int, default=32, help="letters at once (default: %(default)s)")
    options.add_argument("--crash-at", type=int, default=0, metavar="N", help="kill this process after N letters")
    given = options.parse_args()
    sys.exit(anyio.run(main, given.db, given.outbox, given.count, given.concurrency, given.crash_at))
