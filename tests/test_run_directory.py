"""Run directories: whom they belong to, who works in them, and what was launched."""

import pytest
import yaml

from flamingo.choices import Schedule, Sharding, WandbMode
from flamingo.config import (
    BindingSourceConfig,
    DataConfig,
    EasyVQASourceConfig,
    TrackingConfig,
    TrainingConfig,
)
from flamingo.evaluation_config import EvaluationConfig
from flamingo.identity import ADDED_LATER, config_hash
from flamingo.run_directory import RunDirectory, load_config
from flamingo.runs import load_run
from tests.written_runs import config, save, training

# ---------------------------------------------------------------------------- belonging


def test_the_resolved_config_is_read_back_as_it_was(tmp_path):
    given = config(
        tmp_path,
        seed=3,
        training=TrainingConfig(schedule=Schedule.linear, lr=3e-4),
        data=DataConfig(binding=BindingSourceConfig(images=9)),
    )
    run = RunDirectory.open(given)
    assert run.path == tmp_path / "mine" / "seed=3"
    assert load_config(run.config_file) == given
    assert RunDirectory.open(given) == run


def test_another_config_is_refused_with_the_difference_and_changes_nothing(tmp_path):
    run = RunDirectory.open(training(tmp_path, lr=1e-3))
    before = run.config_file.read_bytes()
    with pytest.raises(ValueError) as raised:
        RunDirectory.open(
            config(
                tmp_path,
                training=TrainingConfig(lr=2e-3),
                data=DataConfig(binding=BindingSourceConfig()),
            )
        )
    message = str(raised.value)
    assert str(run.path) in message
    assert "training.lr: 0.001 there, 0.002 now" in message
    assert "data.easy_vqa.pairs: 3 there, 'absent' now" in message
    assert "data.binding.images: 'absent' there, 8 now" in message
    assert "warmup" not in message
    assert run.config_file.read_bytes() == before


def test_what_changes_no_weight_may_change_on_continuing(tmp_path):
    RunDirectory.open(config(tmp_path))
    changed = config(
        tmp_path,
        data=DataConfig(easy_vqa=EasyVQASourceConfig(pairs=3), workers=3, feature_cache="/x"),
        training=TrainingConfig(
            log_every=3,
            checkpoint_every=7,
            keep_checkpoints=5,
            eval_every=9,
            eval_batches=2,
            gradient_checkpointing=True,
            sharding=Sharding.full,
            compile=True,
            timeout_minutes=5.0,
        ),
        evaluation=EvaluationConfig(shots=[0, 16]),
        tracking=TrackingConfig(wandb=WandbMode.offline),
    )
    run = RunDirectory.open(changed)
    assert load_config(run.config_file) == changed
    assert config_hash(changed) == config_hash(config(tmp_path))


def test_a_stored_config_without_a_field_added_later_is_the_same_run(tmp_path):
    given = config(tmp_path)
    run = RunDirectory.open(given)
    stored = yaml.safe_load(run.config_file.read_text())
    for name in ADDED_LATER:
        *sections, field = name.split(".")
        part = stored
        for section in sections:
            part = part[section]
        del part[field]
    run.config_file.write_text(yaml.safe_dump(stored))
    assert RunDirectory.open(given).config == load_config(run.config_file) == given


def test_a_run_with_a_constant_rate_may_grow_but_not_shrink(tmp_path):
    short, long = (training(tmp_path, steps=n, schedule=Schedule.constant) for n in (200, 300))
    RunDirectory.open(short)
    assert config_hash(short) == config_hash(long)
    RunDirectory.open(long)
    with pytest.raises(ValueError, match="training.steps: 300 there, 200 now"):
        RunDirectory.open(short)


def test_a_run_whose_rate_depends_on_its_steps_cannot_grow_and_says_why(tmp_path):
    RunDirectory.open(training(tmp_path, steps=200))
    with pytest.raises(ValueError, match="learning rate of every step depends on it"):
        RunDirectory.open(training(tmp_path, steps=300))


def test_only_the_main_process_writes(tmp_path):
    run = RunDirectory.open(config(tmp_path), write=False)
    assert not run.path.exists()


def test_checkpoints_without_a_config_are_refused(tmp_path):
    run = RunDirectory.open(config(tmp_path))
    save(run, 5)
    run.config_file.unlink()
    with pytest.raises(ValueError, match="expected config.yaml beside the checkpoints"):
        RunDirectory.open(config(tmp_path))


def test_a_run_is_finished_with_the_checkpoint_of_its_last_step(tmp_path):
    run = RunDirectory.open(training(tmp_path, steps=200))
    assert not run.finished
    save(run, 199)
    assert not run.finished
    save(run, 200)
    assert run.finished


def test_only_one_process_at_a_time_trains_in_a_directory(tmp_path):
    run = RunDirectory.open(config(tmp_path))
    with run.locked():
        with (
            pytest.raises(ValueError, match="expected no other process training here"),
            RunDirectory.open(config(tmp_path)).locked(),
        ):
            pass
        with pytest.raises(ValueError), run.locked():  # being refused does not let go of it
            pass
    with run.locked():
        pass


def test_a_run_is_evaluated_once_at_a_time_also_while_it_trains(tmp_path):
    run = RunDirectory.open(config(tmp_path))
    refused = pytest.raises(ValueError, match="expected no other evaluation of this run")
    other = RunDirectory.open(config(tmp_path))
    with run.locked(), run.locked_for_evaluation(), refused, other.locked_for_evaluation():
        pass
    with run.locked_for_evaluation():
        pass


# ---------------------------------------------------------------------------- launches


def test_every_launch_is_recorded(tmp_path):
    run = RunDirectory.open(config(tmp_path))
    run.record_launch({"vision": "abc", "language": "def"}, from_step=0)
    run.record_launch({"vision": "abc", "language": "def"}, from_step=9)
    first, second = load_run(run.path).provenance["launches"]
    assert first["backbones"] == {"vision": "abc", "language": "def"}
    assert (first["from_step"], second["from_step"]) == (0, 9)
    assert first["packages"]["torch"] and first["python"] and first["platform"]
    assert set(first["git"]) == {"commit", "dirty"}


def test_a_directory_without_a_step_is_refused_with_the_advice_to_remove_it(tmp_path):
    run = RunDirectory.open(training(tmp_path, lr=0.1))
    with pytest.raises(ValueError, match="never took a step: the directory can be removed"):
        RunDirectory.open(training(tmp_path, lr=0.2))
    run.metrics.write_text("")
    with pytest.raises(ValueError, match=r"lr: 0\.1 there, 0\.2 now") as refused:
        RunDirectory.open(training(tmp_path, lr=0.2))
    assert "removed" not in str(refused.value)
