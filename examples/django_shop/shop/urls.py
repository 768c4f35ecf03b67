"""Where the views are."""

from __future__ import annotations

from django.urls import path

from shop import sync_views, views

urlpatterns = [
    path("orders/<str:id>", views.order),
    path("plain/orders/<str:id>", sync_views.order),
]
