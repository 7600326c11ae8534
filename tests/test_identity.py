"""Which configurations are one run."""

import pytest

from flamingo.config import (
    CrossAttentionConfig,
    DataConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)
from flamingo.identity import SHARDS, config_hash, differences, other_places
from flamingo.run_directory import RunDirectory, load_config
from flamingo.source_config import MMC4SourceConfig, ShardsConfig
from tests.written_runs import config, training


@pytest.mark.parametrize("field", ["steps", "lr", "micro_batches", "warmup_steps", "clip_norm"])
def test_what_decides_the_weights_is_part_of_the_runs_identity(tmp_path, field):
    default = getattr(TrainingConfig(), field)
    assert config_hash(training(tmp_path, **{field: default + 1})) != config_hash(config(tmp_path))
    assert config_hash(training(tmp_path, **{field: default})) == config_hash(config(tmp_path))


def test_runs_from_before_a_field_was_added_keep_their_identity(tmp_path):
    """The literal is what version 0.1.0 gave, whose models had none of ``ADDED_LATER``."""
    model = ModelConfig(cross_attention=CrossAttentionConfig(heads=4))
    assert config_hash(config(tmp_path, model=model)) == "0bcb0bf8e1f2c697"
    model.resampler.qk_norm = True
    assert config_hash(config(tmp_path, model=model)) != "0bcb0bf8e1f2c697"


def test_shards_in_another_place_are_no_difference_unless_they_are_asked_for(tmp_path):
    def of(folder: str) -> RunConfig:
        shards = ShardsConfig(files=[f"{folder}/*.tar"])
        data = DataConfig(mmc4=MMC4SourceConfig(shards=shards), cache_features=False)
        return config(tmp_path, data=data)

    one, other = of("/data/a"), of("/data/b")
    assert differences(one, other) == {} and differences(one, of("/data/a"), held_to=SHARDS) == {}
    key, places = "data.mmc4.shards.files", (["/data/a/*.tar"], ["/data/b/*.tar"])
    assert differences(one, other, held_to=SHARDS) == {key: places}
    assert other_places(one, other) and not other_places(one, of("/data/a"))


def test_shards_that_were_moved_are_the_same_run(tmp_path):
    """A stream compares their names with those of the checkpoint (``tests/training``)."""

    def of(folder: str) -> RunConfig:
        shards = ShardsConfig(files=[f"{folder}/*.tar"])
        data = DataConfig(mmc4=MMC4SourceConfig(shards=shards), cache_features=False)
        return config(tmp_path, data=data)

    run = RunDirectory.open(of("/data/mmc4"))
    before = run.config_hash
    moved = RunDirectory.open(of("/mnt/mmc4"))
    assert moved.config_hash == before
    assert load_config(run.config_file) == of("/mnt/mmc4")
