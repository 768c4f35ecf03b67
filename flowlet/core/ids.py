"""What an id of a run or machine may be.

Law: the same for everything that a store keeps; what flowlet itself keeps there begins with a prefix
that users' ids may not have.
"""

from __future__ import annotations

import hashlib

from flowlet.errors import IdConflict

RESERVED = "definition/"
"""The prefix of the ids under which definitions are kept."""

_OURS = "flowlet/"
"""The prefix of other ids of flowlet's own, such as those of schedules."""

_LONGEST = 500


def fit_id(id: str) -> str:
    """Return an id that was made out of others: itself, or if it is too long its beginning and a digest of it all."""
    if len(id) <= _LONGEST:
        return id
    digest = hashlib.blake2b(id.encode(), digest_size=16).hexdigest()
    return f"{id[: _LONGEST - 100]}...{digest}"


def check_id(id: object) -> str:
    """Return the id.

    Raises:
        IdConflict: it cannot be one.
    """
    if not isinstance(id, str) or not id or len(id) > _LONGEST or "\x00" in id or not _is_text(id):
        raise IdConflict(f"an id is a text of 1 to {_LONGEST} characters without NUL, not {id!r:.80}")
    if id.startswith(RESERVED):
        raise IdConflict(f"ids that begin with {RESERVED!r} are kept for definitions; use another than {id!r}")
    if id.startswith(_OURS):
        raise IdConflict(f"ids that begin with {_OURS!r} are kept for schedules and the like; use another than {id!r}")
    return id


def _is_text(id: str) -> bool:
    """Tell whether it has an encoding; a lone surrogate has none."""
    try:
        id.encode()
    except UnicodeEncodeError:
        return False
    return True
