"""The server's entry point. Django knows no lifespan, so this answers for it, and is in the `Flowlet` meanwhile."""

from __future__ import annotations

import os
from typing import Any

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
django = get_asgi_application()


async def application(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "lifespan":
        await django(scope, receive, send)
        return
    from shop.work import flow  # needs Django's settings

    await receive()
    async with flow:  # takes up what was under way when the last process ended
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
