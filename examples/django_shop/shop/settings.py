"""What Django has to know. The shop keeps nothing in Django's database, so there is none."""

from __future__ import annotations

import os
from pathlib import Path

SECRET_KEY = "an example has no secrets"
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost", "testserver"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
INSTALLED_APPS = ["shop"]
USE_TZ = True

SHOP_STORE = os.environ.get("SHOP_STORE", f"sqlite:///{Path.cwd()}/shop.db")
