"""``flamingo.images``: what a user may bring, and what is refused by name."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from flamingo.images import MAX_PIXELS, as_rgb, open_image


def _photo(width: int = 40, height: int = 30) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def _encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png_claiming(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels)


def test_a_png_on_disk_and_its_bytes_give_the_same_rgb_pixels(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(_encoded(_photo(), "PNG"))
    for source in (path, str(path), path.read_bytes()):
        image = open_image(source)
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), np.asarray(_photo()))


def test_transparency_is_composited_on_white():
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    opened = open_image(_encoded(image, "PNG"))
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((1, 0)) == (127, 127, 127)


def test_a_palette_with_a_transparent_entry_is_composited_on_white():
    image = Image.new("P", (1, 1))
    image.putpalette([255, 0, 0])
    assert open_image(_encoded(image, "PNG", transparency=0)).getpixel((0, 0)) == (255,) * 3


@pytest.mark.parametrize("mode", ["L", "LA", "1", "CMYK", "P"])
def test_other_modes_become_rgb(mode):
    format = "TIFF" if mode == "CMYK" else "PNG"
    assert open_image(_encoded(_photo().convert(mode), format)).mode == "RGB"


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 256 * 100, 65535]], dtype=np.uint16)
    opened = open_image(_encoded(Image.fromarray(values), "PNG"))
    assert [opened.getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 20, 20))
    opened = open_image(_encoded(image, "JPEG", exif=exif, quality=95))
    assert opened.size == (20, 40)
    assert opened.getpixel((10, 5))[0] > 200  # what was left is on top now
    assert opened.getpixel((10, 35))[0] < 50


def _awkward() -> dict[str, bytes]:
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    deep = Image.fromarray(np.array([[0, 256 * 100, 65535]], dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 8
    palette = Image.new("P", (1, 1))
    palette.putpalette([255, 0, 0])
    return {
        "transparent": _encoded(clear, "PNG"),
        "16 bits": _encoded(deep, "PNG"),
        "turned": _encoded(_photo(), "PNG", exif=exif),
        "a transparent palette": _encoded(palette, "PNG", transparency=0),
        "plain": _encoded(_photo(), "PNG"),
    }


@pytest.mark.parametrize("kind", _awkward())
def test_an_image_opened_by_pillow_becomes_what_the_file_is_opened_as(kind: str):
    data = _awkward()[kind]
    image = Image.open(io.BytesIO(data))
    mode, size = image.mode, image.size
    expected = open_image(data)
    converted = as_rgb(image)
    assert converted.mode == "RGB" and np.array_equal(np.asarray(converted), np.asarray(expected))
    assert np.array_equal(np.asarray(as_rgb(converted)), np.asarray(expected))
    assert (image.mode, image.size) == (mode, size)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_no_known_range_are_refused_by_name(mode: str):
    with pytest.raises(
        ValueError, match=f"row 3: expected 8 or 16 bits a channel, got mode '{mode}'"
    ):
        as_rgb(Image.new(mode, (2, 2)), "row 3")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_truncated_image_is_refused_by_name(tmp_path, format, kept):
    whole = _encoded(_photo(), format)
    path = tmp_path / f"cut.{format.lower()}"
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=r"cut\.\w+: (damaged or truncated|expected an image)"):
        open_image(path)


def test_a_corrupt_chunk_is_refused_by_name(tmp_path):
    whole = bytearray(_encoded(_photo(), "PNG"))
    middle = len(whole) // 2
    whole[middle : middle + 20] = bytes(20)
    (tmp_path / "bad.png").write_bytes(bytes(whole))
    with pytest.raises(ValueError, match=r"bad\.png: damaged or truncated PNG"):
        open_image(tmp_path / "bad.png")


def test_what_is_no_image_is_refused_by_name(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("not an image")
    with pytest.raises(ValueError, match=r"notes\.jpg: expected an image, got 12 bytes"):
        open_image(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"notes\.jpg: expected an image, got an empty file"):
        open_image(path)
    with pytest.raises(ValueError, match="upload 3: expected an image"):
        open_image(b"nothing", name="upload 3")


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png: no such image file"):
        open_image(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="expected an image file, got a directory"):
        open_image(tmp_path)


@pytest.mark.parametrize("text", ["A" * 300, "/9j/4AAQ" + "A/" * 3000])
def test_what_is_far_too_long_for_a_path_is_no_image(text):
    """Not a failing disk, which would end a training: one record has base64 for a path."""
    with pytest.raises(ValueError, match="expected the path of an image, got [0-9,]+ char"):
        open_image(text)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("width", "height"), [(10_000, 10_000), (100_000, 100_000), (MAX_PIXELS // 1000 + 1, 1000)]
)
def test_an_absurd_size_is_refused_from_the_header_alone(width, height):
    with pytest.raises(ValueError, match=r"huge: expected .*89,000,000 pixels"):
        open_image(_png_claiming(width, height), name="huge")


def test_extreme_proportions_are_refused():
    with pytest.raises(ValueError, match="ratio of 100, got 1 x 101"):
        open_image(_encoded(_photo(1, 101), "PNG"))
    assert open_image(_encoded(_photo(1, 100), "PNG")).size == (1, 100)


def test_formats_that_are_not_asked_for_are_refused():
    data = _encoded(_photo(), "TIFF")
    assert open_image(data, formats=("PNG", "TIFF")).size == (40, 30)
    with pytest.raises(ValueError, match=r"upload: expected an image \(PNG, JPEG\)"):
        open_image(data, "upload", formats=("PNG", "JPEG"))


def test_fewer_pixels_can_be_asked_for():
    assert open_image(_encoded(_photo(), "PNG"), max_pixels=1200).size == (40, 30)
    with pytest.raises(ValueError, match="expected between 1 and 1,199 pixels, got 40 x 30"):
        open_image(_encoded(_photo(), "PNG"), "upload", max_pixels=1199)
