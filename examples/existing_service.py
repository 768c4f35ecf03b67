"""A service that was there before flowlet: its class is marked, its callers and their tests stay as they were.

    python examples/existing_service.py

What was added is `@step`, `@compensate` and the lines behind "new"; a diff with the old file shows nothing else.
Called directly, a marked method is the method it was: `send_one` has no idea of flowlet. Called in the new saga, each
call is on record, is undone when a later one fails, and is not repeated after a crash.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from flowlet import Flowlet, compensate, step  # new


@dataclass
class Parcel:
    to: str
    weight: int


class TooHeavy(Exception):
    pass


# ---------------------------------------------------------------- the service, as it was
@dataclass
class Shipping:
    """Books carriers and prints labels."""

    heaviest: int = 30
    booked: list[str] = field(default_factory=list)

    @step(retry=3)  # new
    async def book(self, parcel: Parcel) -> str:
        number = f"{parcel.to}-{parcel.weight}"
        self.booked.append(number)
        return number

    @compensate(book)  # new, above a method that was there
    async def cancel(self, book: str) -> None:
        self.booked.remove(book)

    @step  # new
    async def print_label(self, number: str, weight: int) -> str:
        if weight > self.heaviest:
            raise TooHeavy(f"{weight} kg")
        return f"label {number}"


# ---------------------------------------------------------------- a caller, as it was
async def send_one(shipping: Shipping, parcel: Parcel) -> str:
    """Send a parcel; if the label cannot be printed, the booking stays: an old fault of this caller."""
    number = await shipping.book(parcel)
    return await shipping.print_label(number, parcel.weight)


# ---------------------------------------------------------------- new
shipping = Shipping()
flow = Flowlet()


@flow.saga
async def send(parcel: Parcel) -> str:
    number = await shipping.book(parcel)
    return await shipping.print_label(number, parcel.weight)


async def main() -> None:
    print(await send_one(Shipping(), Parcel("ann", 3)))  # nothing of it is recorded
    async with flow:
        print(await send(Parcel("bob", 4)))
        try:
            await send(Parcel("eve", 40))
        except TooHeavy as error:
            print(f"too heavy: {error}; still booked: {shipping.booked}")


if __name__ == "__main__":
    asyncio.run(main())
