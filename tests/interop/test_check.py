"""The sample that a conversion is checked with."""

from pathlib import Path

import pytest
from PIL import Image

from flamingo.interop.check import Sample


def test_its_image_is_read_as_every_other_file(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    sample = Sample.read("<image>what?", str(tmp_path / "clear.png"))
    assert sample.image.mode == "RGB" and sample.image.getpixel((0, 0)) == (255, 255, 255)
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(ValueError, match=r"notes\.png: expected an image"):
        Sample.read("<image>what?", str(tmp_path / "notes.png"))
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        Sample.read("<image>what?", str(tmp_path / "gone.png"))
