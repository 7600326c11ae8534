"""What the benchmarks ask."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from flamingo.composition import compose
from flamingo.config import RunConfig
from flamingo.data.words import made_up_words
from flamingo.evaluation.benchmarks import Benchmark, build_benchmarks
from flamingo.evaluation.benchmarks.easy_vqa import question_type
from flamingo.evaluation_config import EasyVQABenchmarkConfig, EvaluationConfig
from tests.tiny_world import save_cache, save_classes

from . import tiny


@pytest.fixture(scope="module")
def easy_vqa_folder(tmp_path_factory) -> Path:
    folder = save_cache(tmp_path_factory.mktemp("cache"))
    return next(folder.rglob("train")).parent


def easy(folder: Path, queries: int = 20, seed: int = 0) -> Benchmark:
    benchmark = EasyVQABenchmarkConfig(queries=queries, shots=[0, 1, 2, 4, 8])
    config = RunConfig(name="x", evaluation=EvaluationConfig(easy_vqa=benchmark, seed=seed))
    (built,) = build_benchmarks(config, tiny.tokenizer(), lambda: folder, lambda: folder)
    return built


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("what shape is in the image?", "shape"),
        ("what is the teal shape?", "shape"),
        ("what color is the circle?", "colour"),
        ("what is the color of the shape?", "colour"),
        ("does the image not contain a red shape?", "yes-no"),
        ("is there a triangle?", "yes-no"),
    ],
)
def test_question_types(question: str, expected: str) -> None:
    assert question_type(question) == expected


def test_easy_vqa_asks_the_test_split_and_shows_the_training_split(easy_vqa_folder: Path) -> None:
    for episode in easy(easy_vqa_folder).episodes(4, 0):
        assert episode.query.id.startswith("test/")
        assert "/test/" in episode.query.media.frames[0].key
        assert episode.cluster == episode.query.media.frames[0].key
        assert len(episode.demonstrations) == 4
        for demonstration in episode.demonstrations:
            assert demonstration.id.startswith("train/")
            assert "/train/" in demonstration.media.frames[0].key
        assert episode.candidates == ()


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def test_images_are_those_of_the_split_they_are_keyed_by(easy_vqa_folder: Path) -> None:
    train, test = (
        {pixels(path) for path in (easy_vqa_folder / split / "images").iterdir()}
        for split in ("train", "test")
    )
    assert train and test and not train & test
    for episode in easy(easy_vqa_folder).episodes(4, 0):
        assert episode.query.media.frames[0].open().tobytes() in test
        assert {d.media.frames[0].open().tobytes() for d in episode.demonstrations} <= train


def test_easy_vqa_is_nested_in_queries_and_shots(easy_vqa_folder: Path) -> None:
    few, many = easy(easy_vqa_folder, 10), easy(easy_vqa_folder, 50)
    for short, long in zip(few.episodes(2, 0), many.episodes(8, 0), strict=False):
        assert short.query == long.query
        assert short.demonstrations == long.demonstrations[-2:]
    queries = [episode.query.id for episode in many.episodes(0, 0)]
    assert len(set(queries)) == 50
    assert queries != [e.query.id for e in easy(easy_vqa_folder, 50, seed=1).episodes(0, 0)]


def test_easy_vqa_takes_every_question_for_zero_and_refuses_more_than_there_are(
    easy_vqa_folder: Path,
) -> None:
    assert len(easy(easy_vqa_folder, 0).episodes(0, 0)) == 600
    with pytest.raises(ValueError, match="0 \\(all\\) to 600, got 601"):
        easy(easy_vqa_folder, 601)


def test_the_pool_are_the_training_items_and_chance_is_one_of_the_answers(
    easy_vqa_folder: Path,
) -> None:
    benchmark = easy(easy_vqa_folder)
    assert len(benchmark.pool) == 600
    assert all(item.id.startswith("train/") for item in benchmark.pool)
    red = [i.answer for i in benchmark.pool if i.question == "is there a red shape?"]
    assert Counter(red).most_common(1)[0][0] == "no"  # 1 of 3 images is red
    assert benchmark.chance == pytest.approx(1 / 13)
    assert tiny.binding().pool == ()


# ---------------------------------------------------------------------------- binding


def test_an_episode_shows_each_class_k_times_with_its_word_and_asks_for_one() -> None:
    for episode in tiny.binding(ways=5, queries=50).episodes(2, 0):
        keys = [d.media.frames[0].key for d in episode.demonstrations]
        assert len(set(keys)) == 10, "no image twice"
        assert episode.query.media.frames[0].key not in keys
        word_of = {k.split("/")[1]: d.answer for k, d in zip(keys, episode.demonstrations)}  # noqa: B905
        assert sorted(word_of.values()) == sorted(episode.candidates)
        assert Counter(d.answer for d in episode.demonstrations) == dict.fromkeys(
            episode.candidates, 2
        )
        concept = episode.query.media.frames[0].key.split("/")[1]
        assert episode.query.answer == word_of[concept]


def test_binding_is_nested_by_shots_a_class() -> None:
    benchmark = tiny.binding(ways=3, queries=10)
    for one, two in zip(benchmark.episodes(1, 0), benchmark.episodes(2, 0), strict=True):
        assert one.query == two.query
        assert one.demonstrations == two.demonstrations[-3:]
        assert one.candidates == two.candidates
    for none in benchmark.episodes(0, 0):
        assert none.demonstrations == ()


def test_no_position_and_no_word_tells_the_answer() -> None:
    episodes = tiny.binding(ways=2, queries=2000).episodes(2, 0)
    for position in range(4):
        right = [e.demonstrations[position].answer == e.query.answer for e in episodes]
        assert sum(right) / 2000 == pytest.approx(0.5, abs=0.045)  # 4 standard errors
    first = [e.candidates[0] == e.query.answer for e in episodes]
    assert sum(first) / 2000 == pytest.approx(0.5, abs=0.045)


def test_shots_fit_as_long_as_every_concept_has_images_left() -> None:
    benchmark = tiny.binding(views=4)
    assert benchmark.unfit(3) is None
    reason = benchmark.unfit(4)
    assert reason is not None
    assert "need 5 images of each" in reason
    assert "has 4" in reason


def test_more_ways_than_words_are_an_error() -> None:
    with pytest.raises(ValueError, match="at most the 7 words of synthetic_8_ways, got 8"):
        tiny.binding(ways=8)


# ---------------------------------------------------------------------------- from a config


def build(tmp_path: Path, *overrides: str):
    save_cache(tmp_path / "cache")
    folder = next((tmp_path / "cache").rglob("train")).parent
    emoji = next((tmp_path / "cache").rglob("72x72"))
    config = compose(["name=test", *overrides])
    return build_benchmarks(config, tiny.tokenizer(), lambda: folder, lambda: emoji)


def test_a_collection_gives_seen_and_held_out_benchmarks_that_share_no_concept(
    tmp_path: Path,
) -> None:
    benchmarks = build(tmp_path, "evaluation.binding.queries=40", "evaluation.binding.ways=[2]")
    assert [b.name for b in benchmarks] == ["twemoji_seen_2_ways", "twemoji_held_out_2_ways"]
    shown = [
        {d.id.rsplit("/", 1)[0] for e in b.episodes(1, 0) for d in e.demonstrations}
        for b in benchmarks
    ]
    assert all(shown)
    assert not shown[0] & shown[1]
    assert benchmarks[1].unfit(8) is None


def test_binding_is_asked_with_words_held_out_from_training_alone(tmp_path: Path) -> None:
    save_classes(tmp_path / "photos", views=3)
    folder = f"evaluation.folder.path={tmp_path / 'photos'}"
    held_out = set(made_up_words(tiny.tokenizer()).held_out)
    for benchmark in build(tmp_path, folder, "evaluation.binding.ways=[2]"):
        episodes = benchmark.episodes(1, 0)
        words = {d.answer for e in episodes for d in e.demonstrations}
        words |= {word for e in episodes for word in (*e.candidates, e.query.answer)}
        assert len(words) > 2 and words <= held_out, benchmark.name


def test_binding_on_easy_vqa_shows_the_test_split_alone(tmp_path: Path) -> None:
    benchmarks = build(
        tmp_path,
        "evaluation.binding.collection=easy_vqa_concepts",
        "evaluation.binding.held_out=2",
        "evaluation.binding.ways=[2]",
        "evaluation.binding.queries=4",
    )
    assert [b.name for b in benchmarks] == [
        f"easy_vqa_concepts_{split}_2_ways" for split in ("seen", "held_out")
    ]
    for episode in (episode for b in benchmarks for episode in b.episodes(1, 0)):
        for item in (*episode.demonstrations, episode.query):
            assert item.media.frames[0].key.startswith("easy_vqa/test/")


def test_binding_on_a_folder_of_classes(tmp_path: Path) -> None:
    save_classes(tmp_path / "photos", views=3)
    (benchmark,) = build(
        tmp_path, f"evaluation.folder.path={tmp_path / 'photos'}", "evaluation.folder.ways=[3]"
    )
    assert benchmark.name == "folder_photos_3_ways"
    assert benchmark.unfit(2) is None
    assert "has 3" in str(benchmark.unfit(4))
    assert len(benchmark.episodes(2, 0)[0].demonstrations) == 6


def test_an_evaluation_that_holds_out_other_concepts_than_training_is_refused(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match="evaluation.binding: expected the concepts that training"):
        build(tmp_path, "data.binding.held_out=100", "evaluation.binding.held_out=200")
