"""From a record of any kind of shard to its fields."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from flamingo.data.documents import Record

T = TypeVar("T")


def document_of(record: Record, validate: Callable[..., T]) -> T | None:
    """The document that ``record`` is or, in a tar, has as its member ``json``; None if malformed.

    ``validate`` is ``validate_python`` of a ``pydantic.TypeAdapter``.
    """
    try:
        fields = json.loads(record["json"]) if isinstance(record.get("json"), bytes) else record
        return validate(fields)
    except (ValueError, RecursionError):
        return None


def text_of(value: Any) -> str | None:
    """A text, also as the UTF-8 bytes of a tar's member; None for what is none."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return None
    return value if isinstance(value, str) else None
