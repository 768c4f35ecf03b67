"""`tests/crash/peers.py`, on a Redis server: ``python redis_peer.py SECONDS COMMAND URL EFFECTS ...``.

SECONDS is how far this process's clock is ahead of the others'.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "crash"))


def main(ahead: str, *arguments: str) -> None:
    """Be one of several processes."""
    real = time.time
    time.time = lambda: real() + float(ahead)

    import peers

    from flowlet.stores.redis import RedisStore

    peers.SQLiteStore = RedisStore
    peers.Path = str
    peers.main(*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
