"""Tell that orders are paid, from a process of its own: ``python manage.py mark_paid o-1 o-2``."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from flowlet.errors import RunFinished, RunNotFound
from shop.work import blocking


class Command(BaseCommand):
    help = "Tell that orders are paid; a server that runs goes on with them, or else this command does."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("ids", nargs="+")

    def handle(self, *args: Any, ids: list[str], **options: Any) -> None:
        with blocking:
            for id in ids:
                try:
                    blocking.handle(id).send("paid", True, message_id="paid")
                    self.stdout.write(f"{id}: {blocking.handle(id).result(timeout=60)}")
                except (RunNotFound, RunFinished) as error:
                    raise CommandError(str(error)) from error
