"""What the shop does, and the one `Flowlet` of each process: that of the server, and that of a management command.

pip install django uvicorn
cd examples/django_shop
uvicorn shop.asgi:application                                     # or several, on one store
curl -X POST localhost:8000/orders/o-1 -d '{"sku": "LAMP", "quantity": 2}'
python manage.py mark_paid o-1                                    # another process; the server goes on
curl localhost:8000/orders/o-1
"""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from msgspec import Struct

from flowlet import Flowlet, Run, compensate, provided, step

flow = Flowlet(settings.SHOP_STORE)
blocking = flow.blocking()  # the same for code without an event loop, once somebody opens it


class Order(Struct, frozen=True):
    sku: str
    quantity: int


@step
async def reserve(order: Order) -> str:
    return f"{order.quantity} x {order.sku}"


@compensate(reserve)
async def put_back(order: Order) -> None:
    """Runs when nobody has paid in time."""


@step
async def send(reserve: str) -> str:
    return f"sent {reserve}"


@flow.saga
async def checkout(order: Order, run: Run = provided) -> str:
    reserved = await reserve(order)
    await run.receive("paid", type=bool, timeout=timedelta(days=3))
    return await send(reserved)
