"""The same for servers of WSGI, such as Gunicorn and ``manage.py runserver``: views that are plain functions."""

from __future__ import annotations

import msgspec
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from flowlet.errors import IdConflict, RunNotFound
from shop.work import Order, blocking, checkout


@csrf_exempt
def order(request: HttpRequest, id: str) -> HttpResponse:
    """Begin an order with POST, see it with GET; the work goes on in a thread with an event loop of its own."""
    try:
        if request.method == "POST":
            blocking.start(checkout, msgspec.json.decode(request.body, type=Order), id=id)
        handle = blocking.handle(id, checkout)
        status = handle.status()
        result = handle.result() if status == "completed" else None
    except msgspec.DecodeError as error:
        return JsonResponse({"error": str(error)}, status=400)
    except RunNotFound as error:
        return JsonResponse({"error": str(error)}, status=404)
    except IdConflict as error:
        return JsonResponse({"error": str(error)}, status=409)
    return JsonResponse({"status": status, "result": result})
