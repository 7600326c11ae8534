"""What every typed configuration needs, whatever its dataclasses: keys and checks.

A *schema* is a dataclass; a *section* is a field of it that is a dataclass itself or, when it may
be switched off, a dataclass or null. Keys are named by their dotted path (``training.lr``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

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


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` with the known name nearest to ``name``; "" if none is near."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


class UnknownKeys(ValueError):
    """Keys that a schema lacks: a line each, with the known key nearest to it.

    ``notes`` are told behind their keys.
    """

    def __init__(
        self, unknown: Iterable[str], known: Iterable[str], notes: Mapping[str, str] | None = None
    ) -> None:
        self.unknown, self.known, self.notes = list(unknown), list(known), dict(notes or {})
        super().__init__(
            "\n".join(
                f"{key}: unknown configuration key{self.notes.get(key, '')}"
                f"{nearest(key, self.known)}"
                for key in self.unknown
            )
        )


def refuse(
    unknown: Iterable[str], known: Iterable[str], notes: Mapping[str, str] | None = None
) -> None:
    """Raise :class:`UnknownKeys` if there are any."""
    unknown = list(unknown)
    if unknown:
        raise UnknownKeys(unknown, known, notes)


def told_by_program(error: BaseException, own: Iterable[str]) -> str:
    """What ``error`` says; of unknown keys, with the keys of a program, ``own``, near them as well.

    A program that hands keys on to another schema has a typing mistake in its own refused there.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UnknownKeys):
        cause = cause.__cause__
    if cause is None:
        return str(error)
    more = UnknownKeys(cause.unknown, [*cause.known, *own], cause.notes)
    return str(error).replace(str(cause), str(more))


def expected(hint: Any) -> str:
    """What a field declared as ``hint`` takes, in words: ``a whole number or null``."""
    if type(None) in get_args(hint):
        inner = [expected(h) for h in get_args(hint) if h is not type(None)]
        return " or ".join([*inner, "null"])
    if get_origin(hint) is list:
        return f"a list, of which each is {expected(*get_args(hint))}"
    if section(hint) is not None:
        return "a section (its keys are set one by one)"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of {', '.join(hint.__members__)}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(hint, str(hint))


def field_type(schema: type, key: str) -> Any:
    """How the field ``key`` (``training.betas``, ``training.betas[0]``) is declared, or None."""
    hint: Any = schema
    for name in key.split("."):
        inner = section(hint)
        name, *places = re.findall(r"\w+", name) or [""]
        hint = None if inner is None else get_type_hints(inner).get(name)
        for _ in places:
            hint = next((get_args(h)[0] for h in (hint, *get_args(hint)) if _is_list(h)), None)
    return hint


def _is_list(hint: Any) -> bool:
    return get_origin(hint) is list


def explain(error: OmegaConfBaseException, schema: type) -> str:
    """What OmegaConf refused: the field, what it takes by ``schema``, and what came."""
    key = str(error.full_key or error.key or "")
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: expected a value, got none"
    hint = field_type(schema, key) if key else None
    if hint is None or not isinstance(error, ValidationError):
        return f"{key}: {str(error).splitlines()[0]}".removeprefix(": ")
    value = "null" if error.value is None else repr(error.value)
    members = hint.__members__ if isinstance(hint, type) and issubclass(hint, Enum) else ()
    return f"{key}: expected {expected(hint)}, got {value}{nearest(str(error.value), members)}"


def optional_defaults(schema: type) -> str:
    """YAML of what each optional section of ``schema`` holds once it is switched on."""
    sections = [(name, section(field_type(schema, name))) for name in optional_sections(schema)]
    return OmegaConf.to_yaml(
        OmegaConf.create({name: OmegaConf.structured(inner) for name, inner in sections})
    )


def plain(config: Any) -> dict[str, Any]:
    """The dataclass ``config`` as nested dicts of plain values, enums by name."""
    values = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


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
    except OmegaConfBaseException as error:
        raise ValueError(explain(error, schema)) from error
    assert isinstance(built, schema)
    return built
