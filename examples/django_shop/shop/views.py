"""Async views: they start a run or tell of one, and wait for nothing that takes long."""

from __future__ import annotations

import msgspec
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from flowlet.errors import IdConflict, RunNotFound
from shop.work import Order, checkout, flow


@csrf_exempt
async def order(request: HttpRequest, id: str) -> HttpResponse:
    """Begin an order with POST, see it with GET."""
    try:
        if request.method == "POST":
            await flow.start(checkout, msgspec.json.decode(request.body, type=Order), id=id)
        handle = flow.handle(id, checkout)
        status = await handle.status()
        result = await handle.result() if status == "completed" else None
    except msgspec.DecodeError as error:
        return JsonResponse({"error": str(error)}, status=400)
    except RunNotFound as error:
        return JsonResponse({"error": str(error)}, status=404)
    except IdConflict as error:
        return JsonResponse({"error": str(error)}, status=409)
    return JsonResponse({"status": status, "result": result})
