from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from PIL import Image

from flamingo.backbones.assets import easy_vqa_folder, twemoji_folder
from flamingo.choices import Collection
from flamingo.data.concepts import (
    Concept,
    easy_vqa_concepts,
    folder_concepts,
    load_concepts,
    split_concepts,
    twemoji_concepts,
)


def _refuse() -> Path:
    raise AssertionError("not needed")


def _class_folder(root: Path, **counts: int) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (4, 4), (index, 0, 0)).save(root / name / f"{index}.png")
    return root


def test_emoji_are_single_named_code_points(twemoji: Path) -> None:
    concepts = twemoji_concepts(twemoji, views=3)
    assert {concept.name for concept in concepts} == {
        "black sun with rays",
        "face with tears of joy",
        "grinning face",
        "grinning face with smiling eyes",
        "red apple",
        "rocket",
        "smiling cat face with open mouth",
        "soccer ball",
    }
    keys = [view.key for concept in concepts for view in concept.views]
    assert len(set(keys)) == len(keys) == 24


@pytest.mark.parametrize(
    ("name", "colour"), [("red apple", (0x4E, 0xF3, 1)), ("soccer ball", (0xBD, 0x26, 0))]
)
def test_views_show_the_emoji_of_their_concept(twemoji: Path, name: str, colour) -> None:
    """The fixture's emoji have the colours of their code points."""
    (concept,) = (c for c in twemoji_concepts(twemoji, views=3) if c.name == name)
    for view in concept.views:
        pixels = {found: count for count, found in view.open().getcolors(2**16) or ()}
        assert pixels.get(colour, 0) > 40 * 40  # of a rectangle of at least 44 x 55


def test_easy_vqa_concepts_follow_from_questions_and_answers(easy_vqa: Path) -> None:
    concepts = easy_vqa_concepts(easy_vqa, "train")
    assert {concept.name: [view.key for view in concept.views] for concept in concepts} == {
        "blue rectangle": ["easy_vqa/train/0"],
        "teal circle": ["easy_vqa/train/1"],
        "black triangle": ["easy_vqa/train/3", "easy_vqa/train/4"],
    }  # of image 2 only the colour is told


def test_the_split_is_fixed_nested_and_disjoint(twemoji: Path) -> None:
    concepts = twemoji_concepts(twemoji, views=1)
    small, large = split_concepts(concepts, 2), split_concepts(list(reversed(concepts)), 5)
    names = {part: [c.name for c in getattr(large, part)] for part in ("seen", "held_out")}
    assert len(names["seen"]) == 3 and len(names["held_out"]) == 5
    assert not set(names["seen"]) & set(names["held_out"])
    assert {c.name for c in small.held_out} < set(names["held_out"])
    assert [c.name for c in small.held_out] == ["face with tears of joy", "rocket"]
    assert {c.name for c in large.all} == {c.name for c in concepts}


def test_holding_out_more_than_there_are_is_an_error(twemoji: Path) -> None:
    with pytest.raises(ValueError, match="held_out: expected 0 to 8 concepts, got 9"):
        split_concepts(twemoji_concepts(twemoji, views=1), 9)


def test_only_the_needed_folder_is_asked_for(easy_vqa: Path, twemoji: Path) -> None:
    arguments = {"held_out": 1, "views": 2, "path": None}
    emoji = load_concepts(
        Collection.twemoji,
        **arguments,
        easy_vqa_folder=_refuse,
        twemoji_folder=lambda: twemoji,
    )
    assert len(emoji.seen) == 7 and len(emoji.seen[0].views) == 2
    shapes = load_concepts(
        Collection.easy_vqa_concepts,
        **arguments,
        easy_vqa_folder=lambda: easy_vqa,
        twemoji_folder=_refuse,
        easy_vqa_split="test",
    )
    assert all(v.key.startswith("easy_vqa/test/") for c in shapes.all for v in c.views)


def test_a_class_per_folder_directory_gives_its_classes(tmp_path: Path) -> None:
    root = _class_folder(tmp_path / "pets", cat=2, dog=3)
    (root / ".hidden").mkdir()
    (root / "cat" / ".DS_Store").write_bytes(b"")
    concepts = folder_concepts(root)
    assert [(concept.name, len(concept.views)) for concept in concepts] == [("cat", 2), ("dog", 3)]
    assert concepts[1].views[2].open().getpixel((0, 0)) == (2, 0, 0)


@pytest.mark.parametrize(
    ("counts", "message"),
    [({}, "pets: expected one sub-directory a class"), ({"cat": 1, "dog": 2}, "cat: expected at")],
)
def test_too_few_classes_or_images_are_named(
    tmp_path: Path, counts: dict[str, int], message: str
) -> None:
    (tmp_path / "pets").mkdir()
    with pytest.raises(ValueError, match=message):
        folder_concepts(_class_folder(tmp_path / "pets", **counts))


def test_a_missing_folder_and_a_stray_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: expected a directory"):
        folder_concepts(tmp_path / "nowhere")
    root = _class_folder(tmp_path / "pets", cat=2)
    (root / "cat" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"cat: expected images alone, found 1 .* 'notes\.txt'"):
        folder_concepts(root)


def test_a_corrupt_image_is_named_when_opened(tmp_path: Path) -> None:
    root = _class_folder(tmp_path / "pets", cat=2)
    (root / "cat" / "0.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"0\.png"):
        folder_concepts(root)[0].views[0].open()


def test_images_can_be_sent_to_workers(twemoji: Path) -> None:
    view = twemoji_concepts(twemoji, views=1)[0].views[0]
    assert pickle.loads(pickle.dumps(view)).open().tobytes() == view.open().tobytes()


def test_a_concept_without_views_is_an_error() -> None:
    with pytest.raises(ValueError, match="'nothing': expected at least one view"):
        Concept("nothing", ())


@pytest.mark.slow
def test_the_real_collections_have_the_concepts_the_documentation_names() -> None:
    emoji = twemoji_concepts(twemoji_folder(), views=3)
    assert len(emoji) == len({concept.name for concept in emoji}) == 1359
    for split, images in (("train", 3542), ("test", 880)):
        shapes = easy_vqa_concepts(easy_vqa_folder(), split)
        assert len(shapes) == 24
        assert sum(len(concept.views) for concept in shapes) == images
