"""What every benchmark's reader gives: examples, whatever format they were stored in."""

from __future__ import annotations

from dataclasses import dataclass

from flamingo.types import ImageRef


@dataclass(frozen=True, slots=True)
class Example:
    """One annotated question (or caption, or label) of a data set, as it was published.

    ``id`` is unique within its file; ``images`` are in the order the question speaks of them (one
    nearly always). ``answers`` are the reference answers, best first where the format has an order;
    empty where annotations are missing (test splits). ``candidates`` are the answers to choose
    from, empty for open questions. ``group`` is what results are broken down by. ``cluster`` names
    the image that standard errors are clustered by.
    """

    id: str
    images: tuple[ImageRef, ...]
    question: str
    answers: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    group: str = ""
    cluster: str = ""
