"""The format of histories, as a number.

Law: what has been released stays readable. Records get new fields at the end, with a default, and new kinds of
records get new tags; either raises `FORMAT`, and ``tests/formats`` then gets a file that every later release must read.
"""

from __future__ import annotations

from typing import Final

FORMAT: Final = 1
"""What this release writes; it reads this and everything below."""
