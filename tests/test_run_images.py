"""What predictions showed, found again: checked against the episodes that were evaluated."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from experiments import evaluate
from flamingo.backbones import assets
from flamingo.evaluation.cells import PromptLengths, plan_cells
from flamingo.evaluation.prompts import Episode
from flamingo.evaluation_run import Parts
from flamingo.run_images import Data, RunImages
from flamingo.runs import Run, load_run
from tests.tiny_world import save_classes, save_untrained_run, save_world

IMAGES_CHANGE = [
    "blank_query",
    "blank_demonstrations",
    "swap_query",
    "swap_demonstrations",
    "drop_query",
    "drop_demonstrations",
    "blur_query",
    "text_only_zero_shot",
]
WORDS_CHANGE = ["real", "shuffled_answers", "flipped_answers", "swapped_questions"]
CONDITIONS = [*WORDS_CHANGE, "reversed_order", *IMAGES_CHANGE]


def use(world: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("FLAMINGO_CACHE", str(world / "cache"))
    patch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = save_world(tmp_path_factory.mktemp("world"))
    save_classes(folder / "data" / "photos", views=3)
    return folder


@pytest.fixture(scope="module")
def run(world: Path) -> Run:
    """Evaluated on questions, on emoji, and on the user's own classes."""
    path = save_untrained_run(
        world,
        "seen",
        "evaluation.shots=[0,2]",
        "evaluation.easy_vqa.queries=2",
        "evaluation.binding.queries=1",
        "evaluation.binding.ways=[2]",
        "evaluation.binding.views=3",
        f"evaluation.folder.path={world / 'data' / 'photos'}",
        "evaluation.folder.ways=[2]",
        "evaluation.folder.queries=2",
        "evaluation.folder.shots=[1]",
        f"evaluation.conditions=[{','.join(CONDITIONS)}]",
        "evaluation.demonstrations.seeds=[0,1]",
    )
    with pytest.MonkeyPatch.context() as patch:
        use(world, patch)
        evaluate.evaluate(load_run(path))
    return load_run(path)


@pytest.fixture(autouse=True)
def tiny_assets(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(world, monkeypatch)


def evaluated(run: Run) -> dict[tuple[str, str], Episode]:
    """The episodes as the evaluation shows them to a model, by condition and key of prediction."""
    parts = Parts(run.config, run.checkpoint())
    cells, _ = plan_cells(
        parts.benchmarks,
        run.config.evaluation,
        PromptLengths(parts.tokenizer),
        model_id=parts.settings["model"],
        precision=parts.settings["precision"],
    )
    episodes = {}
    for cell in cells:
        for key, episode in zip(cell.keys, cell.episodes, strict=True):
            # Two draws may be the same prompt, without images for one: that is asked once.
            episodes.setdefault((cell.condition.value, key), episode)
    return episodes


def pixels(image: Image.Image | None) -> object:
    return None if image is None else (image.mode, image.size, image.tobytes())


def test_episodes_and_images_are_those_that_the_model_was_shown(run: Run) -> None:
    episodes, images = evaluated(run), run.images()
    frame = run.episodes()
    assert set(zip(frame["condition"], frame["key"], strict=True)) == set(episodes)
    assert set(frame["condition"]) == set(CONDITIONS)
    assert set(frame["benchmark"]) > {"easy_vqa", "folder_photos_2_ways"}
    for _, row in frame.iterrows():
        episode, shown = episodes[row["condition"], row["key"]], images(row)
        assert row["question"] == episode.query.question
        assert row["references"] == episode.references
        items = episode.demonstrations
        assert row["demonstrations"] == tuple(item.id for item in items)
        assert row["demonstration_questions"] == tuple(item.question for item in items)
        assert row["demonstration_answers"] == tuple(item.answer for item in items)
        assert shown.query_media == episode.query.media
        assert shown.demonstration_media == tuple(item.media for item in items)
        assert len(shown.in_prompt) == row["prompt"].count("<image>")


def test_opened_they_have_the_pixels_that_were_shown(run: Run) -> None:
    frame, episodes, images = run.episodes(), evaluated(run), run.images()
    for (benchmark, condition), own in frame[frame["shots"] > 0].groupby(
        ["benchmark", "condition"]
    ):
        row = own.iloc[0]
        episode, shown = episodes[row["condition"], row["key"]], images(row)
        (query, *others) = [
            None if item.media is None else item.media.frames[0].open()
            for item in (episode.query, *episode.demonstrations)
        ]
        assert pixels(shown.query) == pixels(query), (benchmark, condition)
        assert list(map(pixels, shown.demonstrations)) == list(map(pixels, others))
        told = [image for image in (*others, query) if image is not None]
        assert list(map(pixels, shown.in_prompt)) == list(map(pixels, told))


def test_a_row_of_the_raw_predictions_does_as_well(run: Run) -> None:
    raw = run.predictions("easy_vqa", "swap_query").iloc[-1]
    joined = run.episodes("easy_vqa", "swap_query").iloc[-1]
    assert run.images()(raw) == run.images()(joined)


def test_counted_episodes_have_the_seed_of_their_draw(run: Run) -> None:
    frame = run.episodes("easy_vqa", "real", counted=True)
    assert frame["seed"].tolist() == [0, 0, 0, 0, 1, 1]  # 0 shots: one draw; 2 shots: two
    assert frame["shots"].tolist() == [0, 0, 2, 2, 2, 2]
    raw = run.predictions("easy_vqa", "real", counted=True)
    assert frame["key"].tolist() == raw["key"].tolist()


def test_before_there_are_results_the_runs_own_settings_are_taken(run: Run, tmp_path) -> None:
    going_on = load_run(shutil.copytree(run.path, tmp_path / "copy"))
    for file in (going_on.directory.results, going_on.directory.cells):
        file.unlink()
    frame = going_on.episodes("easy_vqa")
    assert frame["question"].notna().all() and len(frame) == len(run.episodes("easy_vqa"))
    images = going_on.images()
    assert all(images(row) == run.images()(row) for _, row in frame.iloc[::9].iterrows())


def test_images_of_an_earlier_evaluation_are_found_by_its_settings(run: Run, tmp_path) -> None:
    later = load_run(shutil.copytree(run.path, tmp_path / "later"))
    place = later.path / "evaluations" / "2026-01-02T03-04-05"
    place.mkdir(parents=True)
    shutil.copy(later.directory.results, place)
    now = later.directory.results.read_text().replace('"queries": 2', '"queries": 1')
    later.directory.results.write_text(now.replace('"views": 3', '"views": 4'))
    images = later.images()
    for _, row in later.episodes(condition="real").iterrows():
        assert images(row) == run.images()(row)


# ---------------------------------------------------------------------------- elsewhere


@pytest.fixture
def abroad(run: Run, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy on a machine that has none of the data."""
    copy = load_run(shutil.copytree(run.path, tmp_path / "copy"))
    monkeypatch.setenv("FLAMINGO_CACHE", str(tmp_path / "cache"))
    (world / "data").rename(tmp_path / "data")
    yield copy
    (tmp_path / "data").rename(world / "data")


def never() -> Path:
    raise ValueError("easy-VQA is not here")


def test_without_the_data_all_but_images_can_be_read(run: Run, abroad: Run) -> None:
    images = abroad.images(Data(never, never))
    frame = abroad.episodes()
    assert len(frame) and frame.equals(run.episodes())
    for benchmark, missing in (
        ("easy_vqa", "easy-VQA is not here"),
        ("folder_photos_2_ways", f"{Path('data', 'photos')}: expected"),
    ):
        with pytest.raises(ValueError, match=f"expected the images of {benchmark}, query") as told:
            images(frame[frame["benchmark"] == benchmark].iloc[0])
        assert str(abroad.directory.results) in str(told.value) and missing in str(told.value)


def test_moved_data_are_found_where_they_are_said_to_be(
    run: Run, abroad: Run, world: Path, tmp_path: Path
) -> None:
    data = Data(never, never, {str(world / "data"): str(tmp_path / "data")})
    images, frame = abroad.images(data), abroad.episodes("folder_photos_2_ways")
    assert set(frame["condition"]) == {*CONDITIONS} - {"text_only_zero_shot"}
    for _, row in frame.iterrows():
        assert len(images(row).in_prompt) == row["prompt"].count("<image>")
    row = frame[(frame["condition"] == "real")].iloc[0]
    original = Path(row["demonstrations"][0].removeprefix("folder/"))
    moved = tmp_path / "data" / original.relative_to(world / "data")
    with Image.open(moved) as expected:
        assert pixels(images(row).demonstrations[0]) == pixels(expected.convert("RGB"))


def test_other_pictures_under_the_names_of_those_that_were_shown_are_refused(
    run: Run, abroad: Run, world: Path, tmp_path: Path
) -> None:
    data = Data(never, never, {str(world / "data"): str(tmp_path / "data")})
    frame = abroad.episodes("folder_photos_2_ways", "real")
    row = frame[frame["demonstrations"].map(len) > 0].iloc[0]
    original = Path(row["demonstrations"][0].removeprefix("folder/"))
    file = tmp_path / "data" / original.relative_to(world / "data")
    before = file.read_bytes()
    Image.new("RGB", (20, 20), "pink").save(file)
    try:
        with pytest.raises(ValueError, match="its images show something else now than when"):
            abroad.images(data)(row)
        # Of a version that wrote no digest: as far as names tell.
        assert abroad.images(data)(row.drop("contents")).demonstrations
    finally:
        file.write_bytes(before)


def test_a_folder_of_classes_may_be_called_otherwise_where_it_is_now(
    run: Run, abroad: Run, world: Path, tmp_path: Path
) -> None:
    here = tmp_path / "data" / "pictures"
    (tmp_path / "data" / "photos").rename(here)
    try:
        there, frame = str(world / "data" / "photos"), abroad.episodes("folder_photos_2_ways")
        moved = abroad.images(Data(never, never, {f"{there}/": str(here)}))
        for _, row in frame.iterrows():
            assert len(moved(row).in_prompt) == row["prompt"].count("<image>")
        row = frame[frame["condition"] == "real"].iloc[0]
        original = Path(row["demonstrations"][0].removeprefix("folder/"))
        with Image.open(here / original.relative_to(there)) as expected:
            assert pixels(moved(row).demonstrations[0]) == pixels(expected.convert("RGB"))
        misspelt = abroad.images(Data(never, never, {f"{there}s": str(here)}))
        with pytest.raises(
            ValueError, match="moved: no path of the run's .*photoss' or in"
        ) as told:
            misspelt(row)
        assert str(told.value).endswith(f"did you mean {there}?")
    finally:
        here.rename(tmp_path / "data" / "photos")


@pytest.mark.parametrize("part", ["frame", "column", "lacking"])
def test_what_is_no_row_is_refused(run: Run, part: str) -> None:
    frame = run.episodes("easy_vqa", "real")
    given, message = {
        "frame": (frame, f"got a DataFrame of {len(frame)}: take one of them"),
        "column": (frame["query"].tolist(), "row: expected one row of run.episodes.*, got list"),
        "lacking": (frame.iloc[0].drop("prompt_hash"), "got none of prompt_hash"),
    }[part]
    with pytest.raises(ValueError, match=message):
        RunImages.__call__.__wrapped__(run.images(), given)  # without the tests' check of types


def test_images_that_are_others_now_are_refused(run: Run) -> None:
    row = run.episodes("easy_vqa", "real").iloc[-1].copy()
    row["demonstrations"] = row["demonstrations"][::-1]
    with pytest.raises(ValueError, match="other images now than those that the model was shown"):
        run.images()(row)
    row["demonstrations"] = ("train/x", "train/y")
    with pytest.raises(ValueError, match=r"2 of 3 items are not among those .* 'train/x'"):
        run.images()(row)


def test_nothing_is_built_before_an_image_is_asked_for(run: Run, monkeypatch) -> None:
    monkeypatch.setattr(assets, "easy_vqa_folder", never)
    images = run.images(Data(never, never))
    (folder,) = run.episodes("folder_photos_2_ways", "real").head(1).to_dict("records")
    assert images(folder).query is not None  # easy-VQA's absence does not matter to it
