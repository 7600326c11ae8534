"""What every typed configuration needs, whatever its dataclasses: keys and checks.

A *schema* is a dataclass; a *section* is a field of it that is a dataclass itself or, when it may
be switched off, a dataclass or null. Keys are named by their dotted path (``training.lr``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

Schema = TypeVar("Schema")


def require(condition: bool, name: str, expected: str, actual: object) -> None:
    """Raise ``ValueError`` naming the key unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{name}: expected {expected}, got {actual!r}")


def section(hint: Any) -> type | None:
    """The dataclass of a field declared as ``D`` or ``D | None``; ``None`` for any other type."""
    candidates = (hint, *get_args(hint))
    return next((c for c in candidates if isinstance(c, type) and is_dataclass(c)), None)


def known_keys(schema: type, prefix: str = "") -> list[str]:
    """Every dotted name of ``schema``, sections and fields."""
    names = []
    for key, hint in get_type_hints(schema).items():
        names.append(f"{prefix}{key}")
        inner = section(hint)
        if inner is not None:
            names += known_keys(inner, f"{prefix}{key}.")
    return names


def optional_sections(schema: type, prefix: str = "") -> list[str]:
    """Dotted names of the sections that may be null."""
    names = []
    for key, hint in get_type_hints(schema).items():
        inner = section(hint)
        if inner is not None:
            if type(None) in get_args(hint):
                names.append(f"{prefix}{key}")
            names += optional_sections(inner, f"{prefix}{key}.")
    return names


def unknown_keys(values: Any, schema: type, prefix: str = "") -> list[str]:
    """Dotted names in ``values`` that ``schema`` does not have (Hydra lets ``+key=1`` through)."""
    hints = get_type_hints(schema)
    unknown = []
    for key, value in values.items():
        inner = section(hints.get(key))
        if key not in hints:
            unknown.append(f"{prefix}{key}")
        elif inner is not None and hasattr(value, "items"):
            unknown += unknown_keys(value, inner, f"{prefix}{key}.")
    return unknown


def refuse(unknown: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``ValueError`` naming each unknown key, and the known one nearest to it, if any are."""
    messages, known = [], list(known)
    for key in unknown:
        nearest = get_close_matches(key, known, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        messages.append(f"{key}: unknown configuration key{hint}")
    if messages:
        raise ValueError("\n".join(messages))


def build(composed: Any, schema: type[Schema]) -> Schema:
    """``composed``, a ``DictConfig`` or mapping, as a ``schema``; what it lacks has its default.

    Raises ``ValueError`` naming the key for an unknown key, a wrong type, a missing value, or what
    the ``__post_init__`` of a dataclass refuses.
    """
    # OmegaConf reports failures in several classes of its own; one is enough for a caller.
    try:
        values = OmegaConf.to_container(OmegaConf.create(composed), resolve=True)
        refuse(unknown_keys(values, schema), known_keys(schema))
        built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key}: expected a value, got none") from error
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0]
        raise ValueError(f"{error.full_key}: {message}") from error
    assert isinstance(built, schema)
    return built
