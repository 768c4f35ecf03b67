"""A plain script: the thumbnails of a folder, one after the other, and no step twice.

    python examples/script.py photos/            # kill it, run it again: it goes on where it was

No event loop, no server and no class: `Flowlet.run` enters, does the work and leaves. The id says what the work is, so
that the second call with the same id is the same run, and its result. With another photo it is other work: the id has a
checksum of their names.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import anyio

from flowlet import Flowlet, step

flow = Flowlet("sqlite:///thumbnails.db")


@step(retry=3)
async def shrink(photo: str) -> str:
    """Make a small one; half of its bytes stand in for that here."""
    small = anyio.Path(photo).with_suffix(".small")
    data = await anyio.Path(photo).read_bytes()
    await small.write_bytes(data[: len(data) // 2])
    print(f"shrunk {photo}")
    return str(small)


@step
async def write_index(folder: str, thumbnails: list[str]) -> str:
    index = anyio.Path(folder) / "index.html"
    await index.write_text("\n".join(f'<img src="{Path(name).name}">' for name in thumbnails))
    return str(index)


@flow.saga
async def gallery(folder: str, photos: list[str]) -> str:
    return await write_index(folder, [await shrink(photo) for photo in photos])


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else "."
    if not Path(folder).is_dir():
        sys.exit(f"there is no folder {folder}")  # before a run of it is on record as failed
    photos = sorted(str(path) for path in Path(folder).glob("*.jpg"))
    names = zlib.crc32("\n".join(photos).encode())
    print(flow.run(gallery, folder, photos, id=f"gallery:{Path(folder).resolve()}:{names:08x}"))
