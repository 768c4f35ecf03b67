"""The entry point of a server of WSGI: each of its processes has an event loop in a thread, for the `Flowlet`."""

from __future__ import annotations

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
application = get_wsgi_application()

from shop.work import blocking  # noqa: E402 - needs Django's settings

blocking.open()  # in the process that serves: with Gunicorn, do not preload the application
