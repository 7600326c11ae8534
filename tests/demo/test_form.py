"""What may be filled in on the page, and what is refused."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from flamingo.demo.form import Limits, Row, candidates, demonstrations, query, read_image
from flamingo.demo.gradio_settings import gradio_settings

LIMITS = Limits(demonstrations=3, upload_megabytes=1, megapixels=1, characters=20, candidates=3)


def saved(folder: Path, format: str = "PNG", size: tuple[int, int] = (8, 8)) -> str:
    path = folder / f"image.{format.lower()}"
    Image.new("RGB", size, "red").save(path, format)
    return str(path)


def test_rows_that_are_filled_in_become_demonstrations_in_order(tmp_path: Path) -> None:
    image = saved(tmp_path)
    rows = [Row(image, " what? ", "red"), Row(None, "", None), Row(image, "where?", "left")]
    shown = demonstrations(rows, LIMITS)
    assert [(own.question, own.answer) for own in shown] == [("what?", "red"), ("where?", "left")]
    assert shown[0].image.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((False, "what?", "red"), "image of demonstration 2: expected an upload, got none"),
        ((True, " ", "red"), "question of demonstration 2: expected 1 to 20 characters, got none"),
        ((True, "what?", None), "answer of demonstration 2: expected 1 to 20 characters, got none"),
        ((True, "w" * 21, "red"), "question of demonstration 2: expected 1 to 20 characters"),
    ],
)
def test_a_row_that_is_half_filled_in_is_named(tmp_path: Path, row, message: str) -> None:
    image = saved(tmp_path)
    rows = [Row(image, "what?", "red"), Row(image if row[0] else None, *row[1:])]
    with pytest.raises(ValueError, match=re.escape(message)):
        demonstrations(rows, LIMITS)


def test_more_rows_than_allowed_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="demonstrations: expected at most 3, got 4"):
        demonstrations([Row(None, None, None)] * 4, LIMITS)


def test_a_query_needs_an_image_and_a_question(tmp_path: Path) -> None:
    assert query(saved(tmp_path), "what?", LIMITS).question == "what?"
    with pytest.raises(ValueError, match="image: expected an upload, got none"):
        query(None, "what?", LIMITS)
    with pytest.raises(ValueError, match="question: expected 1 to 20 characters, got none"):
        query(saved(tmp_path), None, LIMITS)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("", ()), (None, ()), (" ", ()), ("red, blue", ("red", "blue")), ("a,b,c", ("a", "b", "c"))],
)
def test_candidates_are_separated_by_commas(typed: str | None, expected: tuple[str, ...]) -> None:
    assert candidates(typed, LIMITS) == expected


@pytest.mark.parametrize("typed", ["red", "red, red", "red,,blue", "a,b,c,d", ","])
def test_candidates_between_which_nothing_can_be_chosen_are_refused(typed: str) -> None:
    with pytest.raises(ValueError, match="candidates: expected 2 to 3 different"):
        candidates(typed, LIMITS)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_pictures_of_the_web_are_read(tmp_path: Path, format: str) -> None:
    assert read_image(saved(tmp_path, format), "image", LIMITS).size == (8, 8)


def test_a_format_whose_decoder_starts_a_program_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, "EPS")
    (tmp_path / "image.png").write_bytes(Path(path).read_bytes())
    with pytest.raises(ValueError, match=r"expected an image \(PNG, JPEG, WEBP, GIF, BMP\)"):
        read_image(str(tmp_path / "image.png"), "image", LIMITS)


@pytest.mark.parametrize("content", [b"", b"<svg/>", b"\x80\x04pickle", b"#!/bin/sh\n"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(ValueError, match="image: expected an image"):
        read_image(str(tmp_path / "image.png"), "image", LIMITS)


def test_an_image_of_few_bytes_and_many_pixels_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("1", (2000, 501)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 1000
    (tmp_path / "bomb.png").write_bytes(buffer.getvalue())
    message = "image: expected between 1 and 1,000,000 pixels, got 2000 x 501"
    with pytest.raises(ValueError, match=message):
        read_image(str(tmp_path / "bomb.png"), "image", LIMITS)


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = Path(saved(tmp_path, "BMP"))
    path.write_bytes(path.read_bytes() + bytes(10**6))
    with pytest.raises(ValueError, match=r"image: expected at most 1 MB, got 1\.0 MB"):
        read_image(str(path), "image", LIMITS)


@pytest.mark.parametrize("name", ["upload_megabytes", "megapixels", "characters", "candidates"])
def test_a_limit_below_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"limits.{name}: expected at least 1, got 0"):
        Limits(**{name: 0})


def test_the_environment_cannot_widen_what_is_served(tmp_path: Path) -> None:
    given = {"PATH": "/bin", "GRADIO_ALLOWED_PATHS": "/", "GRADIO_SHARE": "True", "no_proxy": "a"}
    assert gradio_settings(given, tmp_path) == {
        "PATH": "/bin",
        "GRADIO_TEMP_DIR": str(tmp_path),
        "GRADIO_EXAMPLES_CACHE": str(tmp_path),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "no_proxy": "a,127.0.0.1,localhost",
        "NO_PROXY": "127.0.0.1,localhost",
    }
