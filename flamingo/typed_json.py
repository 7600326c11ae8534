"""JSON against declared types, with errors that name the place, what it takes and what came.

A format is declared as small dataclasses or typed dictionaries. Types are strict: a number in
quotes is not a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

T = TypeVar("T")


def parse_json(validate_json: Callable[..., T], data: str | bytes) -> T:
    """The JSON text ``data`` by ``validate_json``, that of a ``pydantic.TypeAdapter``.

    Raises ``ValueError`` for the first thing that does not fit:
    ``questions[3].image_id: expected a valid integer, got 'x'``.
    """
    try:
        return validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise ValueError(_explanation(first)) from error


def _explanation(error: Mapping[str, Any]) -> str:
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error["loc"])
    place = f"{place.removeprefix('.')}: " if place else ""
    match error["type"]:
        case "missing":
            return f"{place}expected this field, found none"
        case "extra_forbidden":
            return f"{place}expected no field of this name, found one"
        case "json_invalid":
            return f"{place}expected JSON; {error['msg']}"
        case _:
            expected = error["msg"].removeprefix("Input should be ")
            got = repr(error["input"])
            return f"{place}expected {expected}, got {got[:80]}{'...' if len(got) > 80 else ''}"
