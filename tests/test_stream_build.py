"""A streaming source from its configuration, by names as a user gives them, to a checkpoint."""

import json
import logging
import math
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from experiments.train import run as run_training
from flamingo.ablation.progress import Stage, progress_of
from flamingo.build import build_parts, open_data
from flamingo.composition import compose
from flamingo.config import DataConfig, RunConfig
from flamingo.run_directory import RunDirectory
from flamingo.runs import load_run
from flamingo.source_config import InterleavedSourceConfig, ShardsConfig
from flamingo.testing import draw, save_tiny_language_model
from flamingo.training.checkpoint import save_checkpoint
from flamingo.training.loop import train
from tests.tiny_world import save_classes, save_vision_encoder
from tests.toy_stream import source, write_shards

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save_tiny_language_model(folder / "language")
    save_vision_encoder(folder / "vision")
    save_classes(folder / "classes", views=3)
    write_shards(folder / "data", [12, 9, 11], ["0-1", "1-2"])
    write_shards(folder / "unseen", [8])
    return folder


def config_of(world: Path, runs: Path, *more: str) -> RunConfig:
    model = ["model.resampler.depth=1", "model.resampler.num_latents=2", "model.resampler.heads=2"]
    model += ["model.cross_attention.heads=2", "model.cross_attention.dim_head=8"]
    return compose(
        [
            *("name=streamed", f"runs={runs}", *model),
            *(f"vision.name={world / 'vision'}", f"language.name={world / 'language'}"),
            *(f"data.interleaved.shards.files=[{world / 'data'}]", "data.interleaved.sequences=3"),
            *("data.cache_features=false", "training.steps=3", "training.warmup_steps=0"),
            *more,
        ]
    )


def test_a_stream_beside_another_source_trains_with_workers_and_validation(world, tmp_path):
    config = config_of(
        world,
        tmp_path,
        f"data.interleaved.validation={world / 'unseen'}",
        *("data.interleaved.lanes=2", "data.interleaved.shuffle=5", "data.workers=2"),
        *("data.binding.collection=folder", f"data.binding.path={world / 'classes'}"),
        *("data.binding.held_out=4", "data.binding.sequences=2"),
        *("training.eval_every=3", "training.eval_batches=1"),
        "model.resampler.standardize_features=true",
    )
    parts = build_parts(config, CPU)
    assert parts.mixture.names == ("binding", "interleaved")
    run = RunDirectory.open(config)
    given = (parts.model, parts.processor.tokenizer, parts.mixture, parts.load_media, run)
    result = train(config, *given, beside=[parts.processor])
    assert result.finished
    (entry,) = load_run(run.path).metrics.to_dict("records")
    losses = ["train/loss/interleaved", "validation/loss/binding", "validation/loss/interleaved"]
    assert all(math.isfinite(entry[name]) for name in losses)
    assert run.finished


def begun(config: RunConfig, step: int) -> RunDirectory:
    """The run of ``config`` with a checkpoint of ``step`` that tells its shards, and no weights."""
    run = RunDirectory.open(config)
    streams = {"interleaved": source(open_data(config.data)["interleaved"][0][0].shards).state({})}
    save_checkpoint(
        run.checkpoints,
        step=step,
        models=[],
        state={"streams": streams},
        config_hash=run.config_hash,
        keep=1,
    )
    return run


@pytest.mark.parametrize("step", [1, 3])  # of 3: to be continued, and finished
def test_other_shards_are_refused_before_anything_is_written_or_said_to_be_done(
    world, tmp_path, step
):
    run = begun(config_of(world, tmp_path), step)
    before = sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*"))
    other = config_of(world, tmp_path, f"data.interleaved.shards.files=[{world / 'unseen'}]")
    with pytest.raises(ValueError, match=r"step_\d: data.interleaved.shards: .*3 shards.* another"):
        run_training(other, Accelerator())
    with nullcontext() if step == 1 else pytest.raises(ValueError, match="got 1 shards"):
        progress_of(other)
    assert sorted((path, path.stat().st_mtime_ns) for path in run.path.rglob("*")) == before


def test_a_finished_run_whose_shards_were_moved_or_are_gone_is_finished(world, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(world / "data", data)
    own = config_of(world, tmp_path, f"data.interleaved.shards.files=[{data}]")
    begun(own, 3)
    moved = config_of(world, tmp_path, f"data.interleaved.shards.files=[{world / 'data'}/*.jsonl]")
    shutil.rmtree(data)
    for config in (own, moved):
        assert run_training(config, Accelerator()).finished
        assert "finished, 3 steps are done" in capsys.readouterr().out
        assert progress_of(config).stage is Stage.trained


def test_features_of_a_stream_are_standardised_by_its_first_images(world, tmp_path):
    config = config_of(world, tmp_path, "model.resampler.standardize_features=true")
    first, second = (build_parts(config, CPU).model.resampler for _ in range(2))
    assert (first.feature_std > 0).all() and first.feature_mean.abs().sum() > 0
    assert torch.equal(first.feature_mean, second.feature_mean)


def test_features_of_a_stream_cannot_be_cached(world, tmp_path):
    with pytest.raises(ValueError, match="data.cache_features: expected false with data.interl"):
        config_of(world, tmp_path, "data.cache_features=true")


def test_unseen_sequences_that_are_not_there_are_noticed_before_training(world, tmp_path):
    with pytest.raises(ValueError, match=r"training.eval_every: expected 0.*interleaved.validat"):
        config_of(world, tmp_path, "training.eval_every=1")


def test_a_place_without_shards_is_named(world, tmp_path):
    nowhere = "data.interleaved.shards.files=[/no/such/folder]"
    with pytest.raises(ValueError, match=r"data.interleaved: shards.files: .*'/no/such/folder'"):
        build_parts(config_of(world, tmp_path, nowhere), CPU)
    with pytest.raises(ValueError, match=r"data.interleaved.validation: shards.files: .*'/none'"):
        build_parts(config_of(world, tmp_path, "data.interleaved.validation=/none"), CPU)


@pytest.mark.parametrize("name", ["mmc4", "obelics", "coco_captions", "vqa"])
def test_a_folder_of_images_that_is_not_there_is_named(tmp_path, name):
    (tmp_path / "file").write_text("")
    own = {
        "coco_captions": [f"annotations={tmp_path}/file"],
        "vqa": [f"questions={tmp_path}/file", "format=textvqa"],
    }.get(name, [f"shards.files=[{tmp_path}/file]"])
    for folder in ("/no/such/folder", f"{tmp_path}/file", "~/nowhere"):
        keys = [f"data.{name}.{key}" for key in (*own, f"images='{folder}'")]
        config = compose(["name=x", "data.cache_features=false", *keys])
        found = f"^data.{name}: images: expected a folder, found none at {folder}$"
        with pytest.raises(ValueError, match=found):
            open_data(config.data)


def test_files_of_annotations_are_read_once_from_the_first_look_to_the_last_part(
    world, tmp_path, monkeypatch
):
    rows = [{"question_id": 1, "question": "?", "image_id": "1", "answers": ["yes"]}]
    (tmp_path / "vqa.json").write_text(json.dumps({"data": rows}))
    captions = [{"image_id": 1, "caption": "a cat"}]
    coco = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": captions}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    draw("red", "circle", 0).save(tmp_path / "1.jpg")
    config = config_of(
        world,
        tmp_path,
        "data.interleaved=null",
        *(f"data.{name}.images={tmp_path}" for name in ("vqa", "coco_captions")),
        *("data.vqa.format=textvqa", "data.vqa.pairs=1"),
        f"data.vqa.questions={tmp_path}/vqa.json",
        f"data.coco_captions.annotations={tmp_path}/coco.json",
    )
    read, read_bytes = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path.name) or read_bytes(path))
    parts = build_parts(config, CPU, open_data(config.data))
    assert parts.mixture.names == ("coco_captions", "vqa")
    assert [name for name in read if name in ("coco.json", "vqa.json")] == ["coco.json", "vqa.json"]


def test_a_place_must_be_given():
    with pytest.raises(ValueError, match=r"shards: expected exactly one of files and hub"):
        compose(["name=x", "data.interleaved.lanes=2", "data.cache_features=false"])


def test_workers_that_share_lanes_are_warned_of(world, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        build_parts(config_of(world, tmp_path, "data.workers=2"), CPU)
        assert not caplog.text
        build_parts(config_of(world, tmp_path, "data.workers=3"), CPU)
    assert "data.workers: 3 workers read one another's lanes" in caplog.text


def test_many_lanes_of_few_shards_are_warned_of(world, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("flamingo.build.MANY_READERS", 4)
    unseen = f"data.interleaved.validation={world / 'unseen'}"
    with caplog.at_level(logging.WARNING):
        build_parts(config_of(world, tmp_path, unseen), CPU)
        assert not caplog.text  # 12 lanes of 3 shards, and 3 of 1
        build_parts(config_of(world, tmp_path, unseen, "data.interleaved.sequences=5"), CPU)
    assert "data.interleaved.shards: 20 lanes read 3 shards, each by 7 of them" in caplog.text
    assert "data.interleaved: what is held out: 5 lanes read 1 shards, each by 5" in caplog.text


def test_the_sources_of_a_configuration_are_in_the_mixtures_order():
    stream = InterleavedSourceConfig(shards=ShardsConfig(files=["somewhere"]))
    config = DataConfig(interleaved=stream, cache_features=False)
    assert config.sources == [stream] and DataConfig().sources == []
