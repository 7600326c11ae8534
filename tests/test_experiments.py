"""Every experiment of ``conf/experiment``: composed, checked, built at tiny size, one step long.

The backbones are tiny folders and so are the data sets; all else is as the experiment says.
"""

import json
import math
from pathlib import Path

import pytest
import torch

from flamingo.backbones import assets
from flamingo.backbones.language import load_tokenizer
from flamingo.build import build_parts
from flamingo.composition import CONF, compose
from flamingo.config import RunConfig
from flamingo.evaluation.benchmarks import build_benchmarks
from flamingo.model.conditioning import conditioned_layers
from flamingo.run_directory import RunDirectory
from flamingo.runs import load_run
from flamingo.testing import save_tiny_language_model
from flamingo.training.loop import train
from tests.tiny_world import save_cache, save_classes, save_vision_encoder
from tests.written_shards import in_base64, png, write_tar

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
TRAINED = [e for e in EXPERIMENTS if compose([f"experiment={e}"]).data.sources]
"""Those with data. The others are published models' architectures: test_open_flamingo_configs.py
builds them, and their benchmarks are what the user has on disk."""
EVALUATED = [e for e in TRAINED if not e.startswith("openflamingo_")]
"""Those with benchmarks."""
LAYERS = 32
"""Of the tiny language model: a configuration may name the layers of a deep one."""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_tiny_language_model(folder / "language", layers=LAYERS)
    save_vision_encoder(folder / "vision")
    save_classes(folder / "classes", views=3)
    save_cache(folder / "cache")
    save_web(folder)
    return folder


def save_web(folder: Path) -> None:
    """A shard of MMC4, as OpenFlamingo stores it, and one of LAION, as img2dataset writes it."""
    pages = [page([[0.5, 0.1], [0.1, 0.4]]) for _ in range(8)]
    members = [(f"{n:09}.json", json.dumps(page).encode()) for n, page in enumerate(pages)]
    write_tar(folder / "mmc4.tar", members)
    pairs = [(f"{n}.txt", b"a red circle") for n in range(8)]
    pairs += [(f"{n}.jpg", png(n)) for n in range(8)]
    write_tar(folder / "laion.tar", sorted(pairs))


def page(similarity: list[list[float]]) -> dict:
    """A page with a sentence for each image."""
    images = [
        {
            "image_name": f"{number}.png",
            "matched_text_index": number,
            "matched_sim": max(row),
            "image_base64": in_base64(png(number)),
        }
        for number, row in enumerate(similarity)
    ]
    text = [f"what is {number}?" for number in range(len(images))]
    return {"text_list": text, "image_info": images, "similarity_matrix": similarity}


@pytest.fixture(autouse=True)
def tiny_assets(world, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("FLAMINGO_CACHE", str(world / "cache"))


def overrides(world: Path, runs: Path) -> list[str]:
    return [
        f"runs={runs}",
        f"vision.name={world / 'vision'}",
        "vision.revision=null",
        f"language.name={world / 'language'}",
        "language.revision=null",
        "training.steps=1",
        "training.warmup_steps=0",
    ]


def tiny(experiment: str, world: Path, runs: Path) -> RunConfig:
    """The experiment with tiny backbones, one step, few queries; a class folder is a tiny one."""
    given = [f"experiment={experiment}", *overrides(world, runs)]
    own = compose([f"experiment={experiment}"])
    folders = {
        "data.binding": own.data.binding,
        "evaluation.binding": own.evaluation.binding,
        "evaluation.folder": own.evaluation.folder,
    }
    for key, section in folders.items():
        if section is not None and section.path is not None:
            given += [f"{key}.path={world / 'classes'}", f"{key}.held_out=5"]
    if own.data.mmc4 is not None:
        given += [f"data.mmc4.shards.files=[{world / 'mmc4.tar'}]", "data.mmc4.min_image_bytes=0"]
        given += ["data.mmc4.sequences=2", "data.workers=0"]
    if own.data.captions is not None:
        given += [
            f"data.captions.shards.files=[{world / 'laion.tar'}]",
            "data.captions.sequences=4",
        ]
    for key in ("easy_vqa", "binding", "folder"):
        if getattr(own.evaluation, key) is not None:
            given.append(f"evaluation.{key}.queries=5")
    return compose(given)


def test_there_are_experiments():
    assert {"quickstart", "embedded", "smoke"} <= set(TRAINED) < set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_is_valid_as_it_stands_and_is_named_like_its_file(experiment):
    # Otherwise two experiments could share a directory of runs.
    assert compose([f"experiment={experiment}"]).name == experiment


@pytest.mark.parametrize("experiment", TRAINED)
def test_an_experiment_trains_one_step_with_tiny_backbones(experiment, world, tmp_path):
    config = tiny(experiment, world, tmp_path)
    parts = build_parts(config, torch.device("cpu"))
    before = {n: p.detach().clone() for n, p in parts.model.trainable_parameters().items()}
    run = RunDirectory.open(config)
    result = train(
        config,
        parts.model,
        parts.processor.tokenizer,
        parts.mixture,
        parts.load_media,
        run,
        beside=[parts.processor],
    )
    assert result.finished

    reopened = load_run(run.path)
    logged = reopened.metrics.iloc[-1]
    assert all(math.isfinite(logged[f"train/loss/{name}"]) for name in parts.mixture.names)
    model, _ = reopened.model()
    trained = model.trainable_parameters()
    assert list(trained) == list(before)
    assert any(not torch.equal(before[name], p) for name, p in trained.items())
    layers = conditioned_layers(config.model.cross_attention, LAYERS)
    assert list(model.cross_attention) == [str(layer) for layer in layers]


def test_shards_are_where_the_environment_says(world, monkeypatch):
    experiment = "experiment=openflamingo_3b_training"
    assert compose([experiment]).data.mmc4.shards.files == ["data/mmc4"]
    monkeypatch.setenv("MMC4_SHARDS", "/data/mmc4/*.tar")
    assert compose([experiment]).data.mmc4.shards.files == ["/data/mmc4/*.tar"]


def test_shards_that_are_not_there_are_named(world, tmp_path):
    config = tiny("openflamingo_3b_training", world, tmp_path)
    config.data.mmc4.shards.files = ["data/mmc4"]
    with pytest.raises(ValueError, match=r"data.mmc4: shards.files: .*'data/mmc4'"):
        build_parts(config, torch.device("cpu"))


@pytest.mark.parametrize("experiment", EVALUATED)
def test_the_benchmarks_of_an_experiment_have_episodes_at_every_shot_count(
    experiment, world, tmp_path
):
    config = tiny(experiment, world, tmp_path)
    tokenizer = load_tokenizer(config.language)
    benchmarks = build_benchmarks(config, tokenizer, assets.easy_vqa_folder, assets.twemoji_folder)
    assert benchmarks
    for benchmark in benchmarks:
        for shots in benchmark.shots:
            assert benchmark.unfit(shots) is None
            assert [e.shots for e in benchmark.episodes(shots, 0)] == [shots] * 5
