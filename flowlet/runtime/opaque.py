"""What is shown of bytes inside of stored values: how many there are.

Law: they may be anything, also the encoded form of something that is not to be shown, so their content never is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def hide_bytes(value: Any) -> Any:
    """Return plain data with a note of their size in place of all bytes.

    Example:
        >>> from flowlet.runtime.opaque import hide_bytes
        >>> hide_bytes({"name": "a.pdf", "pages": [b"...", 3]})
        {'name': 'a.pdf', 'pages': ['<3 bytes>', 3]}
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return {hide_bytes(key): hide_bytes(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [hide_bytes(part) for part in value]
    return value
