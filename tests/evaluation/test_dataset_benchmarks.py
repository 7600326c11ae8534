"""Each benchmark from its section of the configuration to a score or a file for its server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image

from flamingo.choices import Condition, Metric, Protocol
from flamingo.config import RunConfig
from flamingo.data.sequence import tokenize
from flamingo.evaluation.benchmarks import Benchmark, DatasetBenchmark, build_benchmarks
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.outputs import write_submissions
from flamingo.evaluation.planner import Planner
from flamingo.evaluation.plans import plan_file, write_plans
from flamingo.evaluation.points import points
from flamingo.evaluation.prompts import prompt, prompt_text
from flamingo.evaluation.runner import Loaded, run_benchmarks
from flamingo.evaluation.tasks import Kind, Task, task
from flamingo.evaluation_config import DemonstrationsConfig, EvaluationConfig
from flamingo.structured import build
from flamingo.types import Text
from tests.evaluation.benchmarks.fixtures import DATA, edited

from . import tiny, toys

# ---------------------------------------------------------------------------- sections


def vqa_files(folder: str, files: str, split: str, annotations: str | None = None) -> dict:
    return {
        "questions": str(DATA / folder / files),
        "annotations": None if annotations is None else str(DATA / folder / annotations),
        "images": str(DATA / "coco" / split),
        "image_split": split,
    }


def annotated(annotations: str, images: str) -> dict:
    return {"annotations": str(DATA / annotations), "images": str(DATA / images)}


VQA_VAL = vqa_files(
    "vqav2",
    "v2_OpenEnded_mscoco_val2014_questions.json",
    "val2014",
    "v2_mscoco_val2014_annotations.json",
)
VQA_TEST = vqa_files("vqav2", "v2_OpenEnded_mscoco_test-dev2015_questions.json", "test2015")
COCO = {
    "captions": str(DATA / "coco_captions/dataset_coco.json"),
    "images": str(DATA / "coco"),
    "train_splits": ["train", "restval"],
}
MEMES = annotated("hateful_memes/dev_seen.jsonl", "hateful_memes")
MEMES_TEST = annotated("hateful_memes/test_seen.jsonl", "hateful_memes")
CLEVR = annotated("clevr/CLEVR_val_questions.json", "clevr/images/val")
CLASSES = {
    "test": str(DATA / "image_folder/val"),
    "train": str(DATA / "image_folder/val"),
    "class_names": str(DATA / "image_folder/class_names.json"),
}
POPE = {
    "questions": str(DATA / "pope"),
    "images": str(DATA / "coco/val2014"),
    "settings": ["random", "adversarial"],
}


def ok_vqa(folder: Path) -> dict:
    """The one question of the fixture three times, as 1, 2 and 3."""

    def thrice(key: str) -> Callable[[Any], None]:
        return lambda content: content.update(
            {key: [content[key][0] | {"question_id": number} for number in (1, 2, 3)]}
        )

    source = DATA / "okvqa"
    files = {
        "questions": str(
            edited(
                source / "OpenEnded_mscoco_train2014_questions.json",
                folder / "questions.json",
                thrice("questions"),
            )
        ),
        "annotations": str(
            edited(
                source / "mscoco_train2014_annotations.json",
                folder / "annotations.json",
                thrice("annotations"),
            )
        ),
        "images": str(DATA / "coco/train2014"),
        "image_split": "train2014",
    }
    return {"test": files, "train": files}


def vl_icl(folder: Path) -> dict:
    """The fixture with three demonstrations instead of one."""
    shutil.copytree(DATA / "vl_icl", folder / "vl_icl")
    for name in ("operator_induction", "clevr", "textocr"):
        path = folder / "vl_icl" / name / "support.json"
        edited(path, path, lambda rows: rows.extend(rows * 2))
    path = folder / "vl_icl/open_mi/query.json"
    another = "clevr/images/CLEVR_val_000010.png"
    edited(path, path, lambda rows: rows[0].update(image=[another]))
    return {"folder": str(folder / "vl_icl")}


def hugging_face(folder: Path) -> dict:
    rows = {
        "image": [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")],
        "question": ["red?", "green?", "blue?"],
        "answers": [["yes", "yeah"], ["no"], ["no"]],
    }
    features = datasets.Features(
        image=datasets.Image(),
        question=datasets.Value("string"),
        answers=datasets.List(datasets.Value("string")),
    )
    datasets.Dataset.from_dict(rows, features).save_to_disk(folder / "mine")
    return {"source": str(folder / "mine"), "name": "mine", "train_split": None}


def same(section: dict) -> Callable[[Path], dict]:
    return lambda folder: section


CASES: dict[str, tuple[str, Callable[[Path], dict], int, Metric, str | None]] = {
    # case: section, its content, queries, metric, suffix of the submission (None: it has scores)
    "vqav2": ("vqav2", same({"test": VQA_VAL, "train": VQA_VAL}), 3, Metric.vqa_accuracy, None),
    "vqav2_test": (
        "vqav2",
        same({"test": VQA_TEST, "train": VQA_VAL}),
        2,
        Metric.vqa_accuracy,
        "json",
    ),
    "ok_vqa": ("ok_vqa", ok_vqa, 3, Metric.ok_vqa_accuracy, None),
    "vizwiz_test": (
        "vizwiz",
        same(
            {
                "test": annotated("vizwiz/test.json", "vizwiz/test"),
                "train": annotated("vizwiz/val.json", "vizwiz/val"),
            }
        ),
        1,
        Metric.vqa_accuracy,
        "json",
    ),
    "textvqa_test": (
        "textvqa",
        same(
            {
                "test": annotated("textvqa/TextVQA_0.5.1_test.json", "textvqa/test_images"),
                "train": annotated("textvqa/TextVQA_0.5.1_train.json", "textvqa/train_images"),
            }
        ),
        1,
        Metric.vqa_accuracy,
        "json",
    ),
    "gqa": (
        "gqa",
        same(
            {
                "test": annotated("gqa/val_balanced_questions.json", "gqa/images"),
                "train": annotated("gqa/train_all_questions", "gqa/images"),
            }
        ),
        2,
        Metric.exact_match,
        None,
    ),
    "gqa_test": (
        "gqa",
        same(
            {
                "test": annotated("gqa/submission_all_questions.json", "gqa/images"),
                "train": annotated("gqa/val_balanced_questions.json", "gqa/images"),
            }
        ),
        2,
        Metric.exact_match,
        "json",
    ),
    "coco": ("coco", same(COCO), 1, Metric.cider, None),
    "coco_test": (
        "coco",
        same(COCO | {"test_info": str(DATA / "coco_captions/image_info_test2014.json")}),
        1,
        Metric.cider,
        "json",
    ),
    "flickr30k": (
        "flickr30k",
        same(
            {
                "captions": str(DATA / "flickr30k/dataset_flickr30k.json"),
                "images": str(DATA / "flickr30k/images"),
                "train_splits": ["train", "test"],
            }
        ),
        1,
        Metric.cider,
        None,
    ),
    "hateful_memes": (
        "hateful_memes",
        same({"test": MEMES, "train": MEMES}),
        2,
        Metric.roc_auc,
        None,
    ),
    "hateful_memes_test": (
        "hateful_memes",
        same({"test": MEMES_TEST, "train": MEMES}),
        1,
        Metric.roc_auc,
        "csv",
    ),
    "pope": ("pope", same(POPE), 3, Metric.exact_match, None),
    "clevr": ("clevr", same({"test": CLEVR, "train": CLEVR}), 5, Metric.exact_match, None),
    "classification": ("classification", same(CLASSES), 3, Metric.exact_match, None),
    "vl_icl_open_mi": ("vl_icl", vl_icl, 1, Metric.exact_match, None),
    "vl_icl_operator_induction": ("vl_icl", vl_icl, 2, Metric.exact_match, None),
    "vl_icl_clevr": ("vl_icl", vl_icl, 1, Metric.exact_match, None),
    "vl_icl_textocr": ("vl_icl", vl_icl, 1, Metric.exact_match, None),
    "mine": ("hugging_face", hugging_face, 3, Metric.exact_match, None),
}


def evaluation(section: str, content: dict, **settings: Any) -> EvaluationConfig:
    """Small fixtures have few other images: without another exclusion anything may be shown."""
    values = {
        "shots": [0, 2],
        "conditions": ["real"],
        "batch_size": 4,
        "demonstrations": {"exclusion": "nothing"},
        section: content,
    }
    return build(values | settings, EvaluationConfig)


def built(config: EvaluationConfig, retrieve=None) -> list[Benchmark]:
    def never() -> Path:
        raise AssertionError("no embedded data is needed")

    run = RunConfig(name="x", evaluation=config)
    return build_benchmarks(run, tiny.tokenizer(), never, never, retrieve)


def one(config: EvaluationConfig, name: str) -> Benchmark:
    (found,) = (benchmark for benchmark in built(config) if benchmark.name == name)
    return found


@cache
def loaded() -> Loaded:
    return Loaded(tiny.model(), tiny.load_media(), torch.float32)


@pytest.mark.parametrize("case", CASES)
def test_each_benchmark_gives_a_score_or_a_submission(case: str, tmp_path: Path) -> None:
    section, content, queries, metric, suffix = CASES[case]
    config = evaluation(section, content(tmp_path), max_new_tokens=3)
    benchmark = one(config, case.removesuffix("_test"))
    assert benchmark.task.metric is metric
    assert benchmark.task.decoding.max_new_tokens == 3
    assert [benchmark.unfit(shots) for shots in (0, 2)] == [None, None]
    for shots in (0, 2):
        for episode in benchmark.episodes(shots, 0):
            classes = 2 if benchmark.unit == "demonstrations a class" else 1
            assert len(episode.demonstrations) == shots * classes
            assert all(item.answer for item in episode.demonstrations)
            assert bool(episode.references) == (suffix is None)
    outcome = run_benchmarks(
        [benchmark],
        config,
        tiny.tokenizer(),
        tmp_path / "predictions",
        model_id="m",
        precision="float32",
        load=lambda images: loaded(),
    )
    assert [len(predictions) for _, predictions in outcome.cells] == [queries] * 2
    measured = points(outcome)
    assert [point.annotated for point in measured] == [suffix is None] * 2
    for point in measured:
        for draw in point.draws:
            assert draw.scores is None or len(draw.scores) == queries
    name = benchmark.name
    expected = [f"{name}_{shots}_shots.{suffix}" for shots in (0, 2)] if suffix else []
    assert [p.name for p in write_submissions(outcome, tmp_path / "submissions")] == expected


# ---------------------------------------------------------------------------- prompts

VQA_ASKED = {"test": VQA_TEST, "train": VQA_VAL}
PROMPTS = {
    ("vqav2", "native"): (
        VQA_ASKED,
        ["train/262148001", "train/393225000"],
        "<image>Is this a sunny day? yes<|endofchunk|>"
        "<image>How many bowls are there? 2<|endofchunk|>"
        "<image>What sport is this?",
    ),
    ("vqav2", "open_flamingo"): (
        VQA_ASKED,
        ["train/262148001", "train/393225000"],
        "<image>Question:Is this a sunny day? Short answer:yes<|endofchunk|>\n"
        "<image>Question:How many bowls are there? Short answer:2<|endofchunk|>\n"
        "<image>Question:What sport is this? Short answer:",
    ),
    ("coco", "native"): (
        COCO,
        ["train/393225", "train/458752"],
        "<image>A photo: A bowl of soup.<|endofchunk|>"
        "<image>A photo: a baseball player<|endofchunk|>"
        "<image>A photo:",
    ),
    ("coco", "open_flamingo"): (
        COCO,
        ["train/393225", "train/458752"],
        "<image>Output:A bowl of soup.<|endofchunk|>\n"
        "<image>Output:a baseball player<|endofchunk|>\n"
        "<image>Output:",
    ),
    ("classification", "native"): (
        CLASSES,
        [
            "train/n01514668/ILSVRC2012_val_00000329.JPEG",
            "train/n01440764/ILSVRC2012_val_00002138.JPEG",
        ],
        "<image>This is a rooster<|endofchunk|><image>This is a tench<|endofchunk|>"
        "<image>This is a",
    ),
    ("classification", "open_flamingo"): (
        CLASSES,
        [
            "train/n01514668/ILSVRC2012_val_00000329.JPEG",
            "train/n01440764/ILSVRC2012_val_00002138.JPEG",
        ],
        "<image>Output:rooster<|endofchunk|><image>Output:tench<|endofchunk|><image>Output:",
    ),
    ("hateful_memes", "native"): (
        {"test": MEMES_TEST, "train": MEMES},
        ["train/42953", "train/8291"],
        '<image>It says "its their character not their color that matters". Is it hateful? no'
        "<|endofchunk|>"
        '<image>It says "when you see a spider and then you do not". Is it hateful? yes'
        "<|endofchunk|>"
        '<image>It says "batteries sold separately". Is it hateful?',
    ),
    ("hateful_memes", "open_flamingo"): (
        {"test": MEMES_TEST, "train": MEMES},
        ["train/42953", "train/8291"],
        "<image>is an image with: 'its their character not their color that matters' written on "
        "it. Is it hateful? Answer:no<|endofchunk|>"
        "<image>is an image with: 'when you see a spider and then you do not' written on it. "
        "Is it hateful? Answer:yes<|endofchunk|>"
        "<image>is an image with: 'batteries sold separately' written on it. "
        "Is it hateful? Answer:",
    ),
}


@pytest.mark.parametrize(("section", "protocol"), PROMPTS)
def test_prompts_are_word_for_word_those_of_the_protocol(section: str, protocol: str) -> None:
    content, fixed, expected = PROMPTS[section, protocol]
    config = evaluation(
        section,
        content,
        protocol=protocol,
        demonstrations={"strategy": "fixed", "fixed": fixed, "exclusion": "nothing"},
    )
    benchmark = one(config, section)
    sequences = [prompt(e, benchmark.task.template) for e in benchmark.episodes(2, 0)]
    assert expected in [prompt_text(sequence) for sequence in sequences]
    without = [prompt_text(prompt(e, benchmark.task.template)) for e in benchmark.episodes(0, 0)]
    assert expected[expected.rindex("<image>") :] in without
    if protocol == "open_flamingo":
        own = tiny.tokenizer()
        for sequence in sequences:
            texts = [isinstance(segment, Text) for segment in sequence.segments]
            assert not any(a and b for a, b in pairwise(texts)), "one text between two images"
            joined = own(prompt_text(sequence), add_special_tokens=False)["input_ids"]
            assert list(tokenize(sequence, own, 10_000).input_ids)[-len(joined) :] == joined


def test_the_configuration_s_limit_on_tokens_comes_before_the_protocol_s() -> None:
    sections = {"vqav2": VQA_ASKED, "coco": COCO}
    for settings, expected in (
        ({"protocol": "open_flamingo"}, {"vqav2": 5, "coco": 20}),
        ({"protocol": "open_flamingo", "max_new_tokens": 7}, {"vqav2": 7, "coco": 7}),
    ):
        config = build({**sections, **settings}, EvaluationConfig)
        limits = {b.name: b.task.decoding.max_new_tokens for b in built(config)}
        assert limits == expected


# ---------------------------------------------------------------------------- demonstrations


def test_a_query_is_not_shown_its_own_image() -> None:
    config = evaluation("vqav2", {"test": VQA_VAL, "train": VQA_VAL}, demonstrations={})
    benchmark = one(config, "vqav2")
    images = {}
    for episode in benchmark.episodes(1, 0):
        own = episode.query.media.frames[0].key
        images[own] = {d.media.frames[0].key for d in episode.demonstrations}
    first, second = "vqav2/val2014/262148", "vqav2/val2014/393225"
    assert images == {first: {second}, second: {first}}
    assert benchmark.unfit(2) == "not every query can be shown more than 1 demonstrations"


def test_without_a_training_split_other_questions_of_other_images_demonstrate() -> None:
    benchmark = one(evaluation("pope", POPE, demonstrations={}), "pope")
    shown = {e.query.id: {d.id for d in e.demonstrations} for e in benchmark.episodes(1, 0)}
    assert shown["test/random/1"] == shown["test/random/2"] == {"test/adversarial/1"}
    assert shown["test/adversarial/1"] < {"test/random/1", "test/random/2"}
    assert benchmark.chance == 0.5


def test_balanced_labels_are_shown_equally_often() -> None:
    demonstrations = {"strategy": "label_balanced", "exclusion": "nothing"}
    config = evaluation("classification", CLASSES, demonstrations=demonstrations)
    for seed in range(5):
        for episode in one(config, "classification").episodes(2, seed):
            assert {d.answer for d in episode.demonstrations} == {"tench", "rooster"}


def test_a_pool_larger_than_the_training_split_is_all_of_it() -> None:
    for pool, expected in ((2048, 3), (2, 2)):
        config = evaluation("vqav2", VQA_ASKED, demonstrations={"pool": pool})
        assert len(one(config, "vqav2").pool) == expected


def test_a_test_split_of_images_alone_is_asked_without_a_score(tmp_path: Path) -> None:
    classes = DATA / "image_folder/val"
    for image in sorted(path for path in classes.rglob("*") if path.is_file()):
        shutil.copy(image, tmp_path / f"{image.parent.name}_{image.name}")
    content = {"test": str(tmp_path), "train": str(classes)}
    benchmark = one(evaluation("classification", content), "classification")
    labelled = one(evaluation("classification", content | {"test": str(classes)}), "classification")
    (asked, *_), (known, *_) = benchmark.episodes(0, 0), labelled.episodes(0, 0)
    assert asked.candidates == known.candidates == ("n01440764", "n01514668")
    assert not asked.references and known.references


@pytest.mark.parametrize("linked", [False, True])
def test_a_query_of_a_class_is_not_shown_its_own_file_under_another_name(
    linked: bool, tmp_path: Path
) -> None:
    content = dict(CLASSES)
    if linked:  # a training split of links to the files of the test split
        content["train"] = str(tmp_path / "train")
        for file in Path(CLASSES["test"]).rglob("*.JPEG"):
            link = tmp_path / "train" / file.parent.name / f"a_{file.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    benchmark = one(evaluation("classification", content, demonstrations={}), "classification")
    assert len(benchmark.pool) == 3 and benchmark.unfit(3) is not None
    for episode in benchmark.episodes(2, 0):
        own = episode.query.id.rsplit("/", 1)[1]
        assert not any(shown.id.endswith(own) for shown in episode.demonstrations)
        assert episode.cluster == episode.query.media.frames[0].key
        assert episode.cluster.startswith("classification/test/"), "the key does not name a place"


# ---------------------------------------------------------------------------- VL-ICL


def test_fast_binding_shows_the_class_of_the_query_and_one_other(tmp_path: Path) -> None:
    content = vl_icl(tmp_path)
    path = tmp_path / "vl_icl/open_mi/query.json"

    def third(rows: list[dict]) -> None:
        rows[0]["classes"] = ["blicket", "dax", "wug"]
        rows[0]["support"]["wug"] = rows[0]["support"]["blicket"]
        rows.extend(json.loads(json.dumps(rows)) * 19)

    edited(path, path, third)
    benchmark = one(evaluation("vl_icl", content | {"tasks": ["open_mi"]}), "vl_icl_open_mi")
    assert benchmark.chance == 0.5
    others = set()
    for one_shot, two in zip(benchmark.episodes(1, 0), benchmark.episodes(2, 0), strict=True):
        assert one_shot.demonstrations == two.demonstrations[-2:]
        assert "dax" in two.candidates
        assert sorted(d.answer for d in two.demonstrations) == sorted(two.candidates * 2)
        others |= set(two.candidates) - {"dax"}
        assert {d.id.rsplit("/", 2)[0] for d in two.demonstrations} == {f"train/{two.query.id[5:]}"}
    assert others == {"blicket", "wug"}


def test_fast_binding_never_shows_the_query_s_image() -> None:
    content = {"folder": str(DATA / "vl_icl"), "tasks": ["open_mi"]}
    benchmark = one(evaluation("vl_icl", content), "vl_icl_open_mi")
    (episode,) = benchmark.episodes(1, 0)
    assert "vl_icl/open_mi/images/0.jpg" not in {
        d.media.frames[0].key for d in episode.demonstrations
    }
    assert benchmark.unfit(2) == "not every query has more than 1 demonstrations of both classes"


def test_an_operator_is_demonstrated_by_its_own_results(tmp_path: Path) -> None:
    config = evaluation("vl_icl", vl_icl(tmp_path), shots=[3])
    benchmark = one(config, "vl_icl_operator_induction")
    shown = {e.group: [d.answer for d in e.demonstrations] for e in benchmark.episodes(3, 0)}
    assert shown == {"+": ["7"] * 3, "-": ["-3"] * 3}
    assert benchmark.unfit(4) is not None


def test_the_plans_of_a_run_serve_again_though_each_operator_has_its_own_pool(
    tmp_path: Path,
) -> None:
    content = vl_icl(tmp_path) | {"tasks": ["operator_induction"]}
    (drawn,) = built(evaluation("vl_icl", content, shots=[2]))
    file = plan_file(tmp_path / "planned", drawn.name, 0)
    write_plans(drawn.plans(0), file)
    again = evaluation("vl_icl", content, demonstrations={"plans": str(tmp_path / "planned")})
    (stored,) = built(again)
    assert stored.plans(0) == drawn.plans(0)
    first, second = drawn.plans(0)
    write_plans([first, replace(second, demonstrations=first.demonstrations)], file)
    with pytest.raises(ValueError, match="line 2: demonstrations: expected ids of the pool of"):
        built(again)[0].plans(0)


# ---------------------------------------------------------------------------- what is refused


def test_missing_images_are_named_before_anything_is_loaded(tmp_path: Path) -> None:
    content = {"test": VQA_VAL | {"images": str(tmp_path)}, "train": VQA_VAL}
    with pytest.raises(ValueError, match="COCO_val2014_.*: no such image file; 2 of"):
        built(evaluation("vqav2", content))


def test_two_benchmarks_of_one_name_are_an_error(tmp_path: Path) -> None:
    content = hugging_face(tmp_path) | {"name": "pope"}
    with pytest.raises(ValueError, match="different names, got 'pope' twice"):
        built(evaluation("hugging_face", content, pope=POPE))


def test_a_folder_of_one_split_is_not_both_queries_and_demonstrations(tmp_path: Path) -> None:
    content = hugging_face(tmp_path)
    with pytest.raises(ValueError, match=r"hugging_face.train_split: expected null, as .*mine was"):
        built(evaluation("hugging_face", content | {"train_split": "train"}))
    for episode in one(evaluation("hugging_face", content), "mine").episodes(2, 0):
        shown = {item.question for item in episode.demonstrations}
        assert len(shown) == 2 and episode.query.question not in shown


def test_clevr_counts_by_question_or_by_scene() -> None:
    counting = one(evaluation("clevr", {"test": CLEVR, "train": CLEVR, "counting": True}), "clevr")
    (episode,) = counting.episodes(0, 0)
    assert (episode.query.question, episode.references) == (
        "What number of cubes are there?",
        ("2",),
    )
    scenes = annotated("clevr/CLEVR_val_scenes.json", "clevr/images/val")
    content = {"test": scenes, "train": scenes, "scenes": True}
    (episode,) = one(evaluation("clevr", content), "clevr").episodes(0, 0)
    assert (episode.references, episode.candidates[0]) == (("3",), "3")
    with pytest.raises(ValueError, match="counting .* or scenes, not both"):
        evaluation("clevr", content | {"counting": True})


def test_only_the_real_condition_is_submitted(tmp_path: Path) -> None:
    conditions = [Condition.real.value, Condition.blank_query.value]
    content, seeds = {"test": VQA_TEST, "train": VQA_VAL}, {"seeds": [3, 4]}
    config = evaluation("vqav2", content, conditions=conditions, demonstrations=seeds, shots=[0, 1])
    outcome = run_benchmarks(
        built(config),
        config,
        tiny.tokenizer(),
        tmp_path / "predictions",
        model_id="m",
        precision="float32",
        load=lambda images: loaded(),
    )
    paths = write_submissions(outcome, tmp_path)
    names = ["vqav2_0_shots.json", "vqav2_1_shots_seed=3.json", "vqav2_1_shots_seed=4.json"]
    assert [path.name for path in paths] == names
    rows = json.loads(paths[0].read_text())
    assert [row["question_id"] for row in rows] == [262144000, 262144001], "in the file's order"
    (real,) = (c for c, _ in outcome.cells if c.shots == 0 and c.condition is Condition.real)
    said = {p.query: p.answer for cell, own in outcome.cells if cell is real for p in own}
    assert [row["answer"] for row in rows] == [said[f"test/{row['question_id']}"] for row in rows]


def small(test: list[Example], own: Task) -> DatasetBenchmark:
    return DatasetBenchmark(
        name="small",
        title="Small",
        task=own,
        test=test,
        train=test,
        planner=Planner(DemonstrationsConfig()),
        queries=0,
        pool=0,
        seed=0,
        seeds=[0],
        shots=[0],
    )


def test_queries_without_an_answer_are_passed_over_where_others_have_one(caplog) -> None:
    examples = toys.vqa().examples
    bare = [replace(example, answers=()) for example in examples[:3]]
    own = task(Kind.vqa, Protocol.native, Metric.vqa_accuracy)
    asked = small([*bare, *examples[3:]], own).examples
    assert {example.id for example in asked} == {example.id for example in examples[3:]}
    assert f"small: 3 of {len(examples)} queries have no answer" in caplog.text
    unscored = [replace(example, answers=()) for example in examples]
    assert len(small(unscored, own).examples) == len(examples), "a server scores them"


@pytest.mark.parametrize("candidates", [(), ("No", "Yes"), ("no", "yes", "maybe")])
def test_roc_auc_is_refused_where_no_probability_of_yes_orders_answers(candidates) -> None:
    own = task(Kind.vqa, Protocol.native, Metric.roc_auc)
    examples = [replace(e, candidates=candidates) for e in toys.yes_no().examples]
    with pytest.raises(ValueError, match="^small: metric: roc_auc orders by the probability of"):
        small(examples, own)
