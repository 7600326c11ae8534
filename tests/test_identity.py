"""Which configurations are one run."""

import pytest

from flamingo.config import CrossAttentionConfig, ModelConfig, TrainingConfig
from flamingo.identity import config_hash
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
