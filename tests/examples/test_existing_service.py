"""A service that was marked: its old callers see no difference, and the saga undoes what failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import existing_service
import pytest
from existing_service import Parcel, Shipping, TooHeavy, send_one

from flowlet import Flowlet


# What was there before, for the old caller: unchanged.
@pytest.mark.anyio
async def test_a_parcel_is_booked_and_labelled() -> None:
    shipping = Shipping()
    assert await send_one(shipping, Parcel("ann", 3)) == "label ann-3"
    assert shipping.booked == ["ann-3"]


@pytest.mark.anyio
async def test_one_that_is_too_heavy_stays_booked() -> None:
    shipping = Shipping()
    with pytest.raises(TooHeavy):
        await send_one(shipping, Parcel("ann", 31))
    assert shipping.booked == ["ann-31"]
    await shipping.cancel("ann-31")
    assert shipping.booked == []


# What is new.
@pytest.mark.anyio
async def test_in_the_saga_it_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    shipping = Shipping()
    monkeypatch.setattr(existing_service, "shipping", shipping)
    flow: Flowlet = existing_service.flow
    async with flow:
        with pytest.raises(TooHeavy):
            await existing_service.send(Parcel("ann", 31))
        assert shipping.booked == []
        assert await existing_service.send(Parcel("ann", 3)) == "label ann-3"


def test_as_a_script(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(root / "examples" / "existing_service.py")], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == ["label ann-3", "label bob-4", "too heavy: 40 kg; still booked: ['bob-4']"]
