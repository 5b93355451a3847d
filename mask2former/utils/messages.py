"""Values in messages."""

from typing import Any


def brief(value: Any, limit: int = 100) -> str:
    """Return the beginning of a value's repr, at most `limit` characters."""
    text = repr(value[:limit] if isinstance(value, list | str) else value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
