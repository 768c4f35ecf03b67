"""What an id of a run or machine may be.

Law: the same for everything that a store keeps; what flowlet itself keeps there begins with a prefix
that users' ids may not have.
"""

from __future__ import annotations

from flowlet.errors import IdConflict

RESERVED = "definition/"
"""The prefix of the ids under which definitions are kept."""

_LONGEST = 500


def check_id(id: object) -> str:
    """Return the id.

    Raises:
        IdConflict: it cannot be one.
    """
    if not isinstance(id, str) or not id or len(id) > _LONGEST or "\x00" in id or not _is_text(id):
        raise IdConflict(f"an id is a text of 1 to {_LONGEST} characters without NUL, not {id!r:.80}")
    if id.startswith(RESERVED):
        raise IdConflict(f"ids that begin with {RESERVED!r} are kept for definitions; use another than {id!r}")
    return id


def _is_text(id: str) -> bool:
    """Tell whether it has an encoding; a lone surrogate has none."""
    try:
        id.encode()
    except UnicodeEncodeError:
        return False
    return True
