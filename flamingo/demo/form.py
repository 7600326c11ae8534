"""From what is filled in on the page to what is asked; everything is checked here.

Nothing that is uploaded is run: a file is decoded by Pillow's decoders of :data:`FORMATS`, or
refused. (Others of its decoders start programs: that of EPS starts Ghostscript.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from flamingo.demo.answering import Shown
from flamingo.images import open_image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


@dataclass(kw_only=True)
class Limits:
    """The most that is taken from a visitor."""

    demonstrations: int = 16
    upload_megabytes: int = 10
    """Of one file."""
    megapixels: int = 25
    """Of one image, once it is decoded."""
    characters: int = 500
    """Of a question or an answer."""
    candidates: int = 64

    def __post_init__(self) -> None:
        for name in ("upload_megabytes", "megapixels", "characters", "candidates"):
            if getattr(self, name) < 1:
                raise ValueError(f"limits.{name}: expected at least 1, got {getattr(self, name)}")
        if self.demonstrations < 0:
            raise ValueError(
                f"limits.demonstrations: expected at least 0, got {self.demonstrations}"
            )


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the form: the path of an upload, if any, with a question and an answer."""

    image: str | None
    question: str | None
    answer: str | None

    @property
    def empty(self) -> bool:
        return self.image is None and not _stripped(self.question) and not _stripped(self.answer)


def demonstrations(rows: Sequence[Row], limits: Limits) -> tuple[Shown, ...]:
    """Those of ``rows`` that are filled in. Raises ``ValueError`` for one that is half filled in,
    too many of them, and what :func:`read_image` refuses."""
    if len(rows) > limits.demonstrations:
        raise ValueError(
            f"demonstrations: expected at most {limits.demonstrations}, got {len(rows)}"
        )
    return tuple(
        Shown(
            read_image(row.image, f"image of demonstration {number}", limits),
            _text(row.question, f"question of demonstration {number}", limits),
            _text(row.answer, f"answer of demonstration {number}", limits),
        )
        for number, row in enumerate(rows, start=1)
        if not row.empty
    )


def query(image: str | None, question: str | None, limits: Limits) -> Shown:
    """What is asked. Raises ``ValueError`` where the image or the question is missing or bad."""
    return Shown(read_image(image, "image", limits), _text(question, "question", limits))


def candidates(typed: str | None, limits: Limits) -> tuple[str, ...]:
    """Answers to choose from, separated by commas; none for an open question.

    Raises ``ValueError`` for too many, too long, empty or equal ones, or one alone.
    """
    if not _stripped(typed):
        return ()
    words = [word.strip() for word in _stripped(typed).split(",")]
    if not 2 <= len(set(words)) == len(words) <= limits.candidates or not all(words):
        raise ValueError(
            f"candidates: expected 2 to {limits.candidates} different, non-empty answers "
            f"separated by commas (or nothing), got {len(words)}: {', '.join(words)[:100]!r}"
        )
    return tuple(_text(word, "candidate", limits) for word in words)


def read_image(path: str | None, name: str, limits: Limits) -> Image.Image:
    """The upload at ``path`` as RGB. Raises ``ValueError`` if it is missing or above a limit, and
    what :func:`flamingo.images.open_image` raises."""
    if path is None:
        raise ValueError(f"{name}: expected an upload, got none")
    size = Path(path).stat().st_size
    if size > limits.upload_megabytes * 10**6:
        raise ValueError(
            f"{name}: expected at most {limits.upload_megabytes} MB, got {size / 1e6:.1f} MB"
        )
    data = Path(path).read_bytes()
    return open_image(data, name, formats=FORMATS, max_pixels=limits.megapixels * 10**6)


def _stripped(text: str | None) -> str:
    return (text or "").strip()


def _text(text: str | None, name: str, limits: Limits) -> str:
    text = _stripped(text)
    if not 1 <= len(text) <= limits.characters:
        raise ValueError(
            f"{name}: expected 1 to {limits.characters} characters, got {len(text) or 'none'}"
        )
    return text
