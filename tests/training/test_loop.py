"""The loop on a tiny model: resuming, accumulation, and how it stops."""

import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_run import slowly, tiny_config, tiny_parts, tiny_train

from flamingo.data.collate import collate
from flamingo.data.mixture import UNSEEN
from flamingo.run_directory import RunDirectory
from flamingo.runs import find
from flamingo.training import loop
from flamingo.training.checkpoint import CheckpointError, complete_checkpoints, latest_checkpoint
from flamingo.training.loop import NonFiniteLossError, train
from flamingo.training.loss import batch_loss
from flamingo.training.tracking import VARYING, read_metrics

SCRIPT = Path(__file__).with_name("tiny_run.py")
ROOT = SCRIPT.parents[2]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def metrics_of(run: RunDirectory) -> list[dict]:
    """All metrics but timings and memory."""
    return [
        {k: v for k, v in entry.items() if not k.startswith(VARYING)}
        for entry in read_metrics(run.metrics)
    ]


def weights_of(run: RunDirectory) -> dict[str, torch.Tensor]:
    checkpoint = latest_checkpoint(run.checkpoints)
    assert checkpoint is not None
    return load_file(checkpoint.path / "model.safetensors")


def assert_same_run(one: RunDirectory, other: RunDirectory) -> None:
    assert metrics_of(one) == metrics_of(other)
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    a, b = (latest_checkpoint(run.checkpoints).state() for run in (one, other))
    assert torch.equal(a["random"][0]["torch"], b["random"][0]["torch"])
    for key, own in a["optimizer"]["state"].items():
        assert all(torch.equal(own[n], b["optimizer"]["state"][key][n]) for n in own)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> RunDirectory:
    """A run of 8 steps without interruption."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    result, run = tiny_train(tiny_config(tmp_path_factory.mktemp("straight")))
    assert result.finished and result.steps == 8
    return run


# ---------------------------------------------------------------------------- what a run leaves


def test_a_run_logs_what_it_should_and_keeps_its_newest_checkpoints(straight):
    entries = metrics_of(straight)
    assert [e["step"] for e in entries] == [2, 4, 6, 8]
    assert {"train/loss", "train/loss/short", "train/loss/long", "train/lr"} <= entries[0].keys()
    assert {"train/gradient_norm", "gate/layer_1/attention"} <= entries[0].keys()
    assert "validation/loss/long" in entries[1] and "validation/loss" not in entries[0]
    assert "validation/image_gain/long" in entries[1]
    norms = {n: v for n, v in entries[0].items() if n.startswith("train/gradient_norm/")}
    assert "train/gradient_norm/resampler" in norms and len(norms) == 5
    varying = read_metrics(straight.metrics)[0].keys() - entries[0].keys()
    throughput = {f"time/{name}_per_second" for name in ("tokens", "images")}
    assert varying > throughput | {"time/data_seconds", "time/data_share", "memory/peak_gib"}
    assert [c.step for c in complete_checkpoints(straight.checkpoints)] == [6, 8]


def test_the_documentation_tells_of_every_metric(straight):
    table = re.findall(r"^\| (`.*?`) \|", (ROOT / "docs" / "training.md").read_text(), re.MULTILINE)
    names = re.findall(r"`([^`]+)`", " ".join(table))
    told = [re.compile(re.sub(r"<\w+>", ".+", name)) for name in names]
    logged = {name for entry in read_metrics(straight.metrics) for name in entry} - {"step"}
    assert {name for name in logged if not any(t.fullmatch(name) for t in told)} == set()


def test_training_learns(tmp_path):
    _, run = tiny_train(tiny_config(tmp_path, steps=45, log_every=5, lr=1e-2, eval_every=0))
    losses = [e["train/loss"] for e in metrics_of(run)]
    assert losses[-1] < 0.5 * losses[0]


def test_the_weighted_loss_is_the_sum_over_sources(straight):
    for entry in metrics_of(straight):
        expected = entry["train/loss/short"] + 0.5 * entry["train/loss/long"]
        assert entry["train/loss"] == pytest.approx(expected, rel=1e-5)


def literal_loss(model, tokenizer, rows, load_media) -> torch.Tensor:
    """Of the rows of a step, each alone: a mean over the tokens of each source, the second of them
    (``long``) weighing half."""
    losses: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for source, row in rows:
        batch = collate([row], None, tokenizer.pad_token_id, load_media)
        logits = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            vision_features=batch.vision_features,
        ).logits[0, :-1]
        learned = batch.labels[0, 1:]
        losses[source].append(F.cross_entropy(logits, learned, reduction="none")[learned != -100])
    return torch.cat(losses[0]).mean() + 0.5 * torch.cat(losses[1]).mean()


def test_steps_are_those_of_plain_torch(tmp_path):
    """The loss weights, clipping, weight decay and schedule of a configuration are what the weights
    feel, not only what is logged."""
    rates = [1e-3, 2e-3, 3e-3, 1.65e-3, 3e-4]  # two of warm-up, then a cosine down to a tenth
    config = tiny_config(
        tmp_path,
        steps=5,
        min_lr_fraction=0.1,
        weight_decay=2.0,
        betas=[0.8, 0.95],
        clip_norm=0.5,
        log_every=1,
        eval_every=0,
    )
    _, run = tiny_train(config)

    model, tokenizer, mixture, load_media = tiny_parts(config)
    trained = model.trainable_parameters()
    decayed = {
        name
        for name, p in trained.items()
        if p.ndim == 2 and not name.startswith(("resampler", "new_tokens"))
    }
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in trained.items() if n in decayed], "weight_decay": 2.0},
            {"params": [p for n, p in trained.items() if n not in decayed], "weight_decay": 0.0},
        ],
        betas=(0.8, 0.95),
    )
    losses, norms = [], []
    for step, rate in enumerate(rates):
        optimizer.zero_grad()
        loss = literal_loss(model, tokenizer, mixture.step(step), load_media)
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(trained.values(), 0.5).item())
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()

    assert min(norms) > 0.5, "every step is clipped"
    logged = metrics_of(run)
    assert [entry["train/lr"] for entry in logged] == pytest.approx(rates)
    assert [entry["train/loss"] for entry in logged] == pytest.approx(losses, rel=1e-5)
    assert [entry["train/gradient_norm"] for entry in logged] == pytest.approx(norms, rel=1e-4)
    saved = weights_of(run)
    for name, expected in trained.items():
        assert torch.allclose(saved[name], expected, rtol=0, atol=1e-5), name


def test_only_what_should_train_changes(tmp_path):
    config = tiny_config(tmp_path)
    model, *others = tiny_parts(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(config, model, *others, RunDirectory.open(config))
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    unused = {"new_tokens.input"} - changed  # trains, whether or not these data use the rows
    assert changed | unused == set(model.trainable_parameters())
    assert not any(name.startswith(("language_model", "vision_encoder")) for name in changed)


# ---------------------------------------------------------------------------- resuming


def train_and_stop(
    config, stop_after: int, callback=None, train_with=tiny_train
) -> loop.TrainingResult:
    """Train until SIGTERM arrives during step ``stop_after``."""
    step = loop._Loop._step

    def step_with_signal(self, *arguments):
        if self.done == stop_after - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop._Loop, "_step", step_with_signal)
        return train_with(config, callback=callback)[0]


@pytest.mark.parametrize("stop_after", [3, 5])  # on a checkpoint; between log entries
def test_interrupted_and_continued_equals_straight_bit_for_bit(tmp_path, straight, stop_after):
    config = tiny_config(tmp_path)
    first = train_and_stop(config, stop_after)
    assert (first.finished, first.steps, first.signal) == (False, stop_after, signal.SIGTERM)
    second, run = tiny_train(config)
    assert second.finished
    assert_same_run(run, straight)


def test_a_step_that_is_saved_is_not_saved_again_whatever_the_disk_shows(tmp_path, monkeypatch):
    """Processes decide alike, even where a network's disk is behind for one of them."""
    save, saved = loop.save_checkpoint, []

    def noted(folder, *, step, **rest):
        saved.append(step)
        return save(folder, step=step, **rest)

    monkeypatch.setattr(loop, "latest_checkpoint", lambda _: None)
    monkeypatch.setattr(loop, "save_checkpoint", noted)
    train_and_stop(tiny_config(tmp_path), 3)
    assert saved == [3]


def test_processes_that_find_different_checkpoints_stop_before_the_first_step(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "gather_object", lambda own: [3, *own])
    with pytest.raises(ValueError, match=r"a folder that all processes share, got steps \[3, -1\]"):
        tiny_train(tiny_config(tmp_path))


def test_a_new_run_starts_from_the_main_process_s_weights(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(loop, "broadcast_parameters", lambda given, _: sent.append(given))
    config = tiny_config(tmp_path, steps=1, warmup_steps=0)
    model, *others = tiny_parts(config)
    train(config, model, *others, RunDirectory.open(config))
    (given,) = sent
    assert [*map(id, given)] == [*map(id, model.trainable_parameters().values())]


def test_random_numbers_of_a_run_continue_too(tmp_path):
    def draw(step, model):
        return {"drawn": torch.rand(1).item()}

    def drawn(run):
        return [entry["drawn"] for entry in metrics_of(run)]

    _, straight = tiny_train(tiny_config(tmp_path / "a", eval_every=1), callback=draw)
    config = tiny_config(tmp_path / "b", eval_every=1)
    train_and_stop(config, 5, callback=draw)
    torch.rand(7)
    _, run = tiny_train(config, callback=draw)
    assert drawn(run) == drawn(straight) and len(set(drawn(run))) == 8


def start(folder, *options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )


def wait_for(condition, seconds=240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_at_any_moment_it_continues_bit_for_bit(tmp_path):
    options = ["steps=24", "checkpoint_every=1", "log_every=2", "eval_every=1", "slowly=true"]
    values = {"steps": 24, "checkpoint_every": 1, "log_every": 2, "eval_every": 1}
    _, straight = tiny_train(tiny_config(tmp_path / "straight", **values), callback=slowly)
    config = tiny_config(tmp_path / "killed", **values)
    metrics = RunDirectory(config.directory, config).metrics
    seed = random.randrange(2**32)
    moments = random.Random(seed)
    kills = 0
    while kills < 3:
        process = start(tmp_path / "killed", *options)
        size = metrics.stat().st_size if metrics.exists() else 0

        def moved(process=process, size=size) -> bool:
            grown = metrics.exists() and metrics.stat().st_size > size
            return grown or process.poll() is not None

        wait_for(moved)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.communicate()
        if process.returncode == 0:  # it was faster
            break
        assert process.returncode == -signal.SIGKILL, f"seed {seed}"
        kills += 1
    assert kills, f"seed {seed}"
    process = start(tmp_path / "killed", *options)
    process.communicate()
    assert process.returncode == 0, f"seed {seed}"
    assert_same_run(RunDirectory(config.directory, config), straight)


def steps_found(root: Path) -> int:
    """How many logged steps a notebook beside the training sees of its run."""
    (run,) = find(root=root, seed=0)
    frame = run.metrics
    assert list(frame.index) == [*range(1, len(frame) + 1)]
    assert repr(run).endswith(": step 0 of 500, not finished, not evaluated>")
    return len(frame)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_and_ends_the_process(tmp_path, number):
    options = ["steps=500", "checkpoint_every=400", "eval_every=1", "slowly=true"]
    config = tiny_config(tmp_path, steps=500)
    run = RunDirectory(config.directory, config)
    process = start(tmp_path, *options)
    wait_for(run.config_file.exists)
    wait_for(lambda: steps_found(tmp_path) > 3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 128 + number
    assert b"finishing this step, then saving a checkpoint" in errors
    last = latest_checkpoint(run.checkpoints)
    assert last is not None
    assert read_metrics(run.metrics)[-1]["step"] in (last.step, last.step - 1)


def test_a_finished_run_does_nothing(straight, monkeypatch):
    before = straight.metrics.read_bytes()
    monkeypatch.setattr(loop._Loop, "_step", None)
    result, _ = tiny_train(straight.config)
    assert result.finished and result.steps == 8
    assert straight.metrics.read_bytes() == before


def test_a_checkpoint_of_another_config_is_refused(tmp_path):
    _, run = tiny_train(tiny_config(tmp_path, steps=3))
    manifest = run.checkpoints / "step_3" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(run.config_hash, "other"))
    with pytest.raises(ValueError, match="expected a checkpoint of this run's config.*other"):
        tiny_train(run.config)


def test_another_backbone_than_the_checkpoints_is_refused(tmp_path):
    _, run = tiny_train(tiny_config(tmp_path, steps=3))
    with pytest.raises(ValueError, match="language_fingerprint: expected"):
        train(run.config, *tiny_parts(run.config, family="gpt2"), run)


# ---------------------------------------------------------------------------- equivalences


def test_accumulation_changes_nothing(tmp_path, straight, monkeypatch):
    rows = []

    def noted(model, batch, weights):
        rows.append(len(batch.input_ids))
        return batch_loss(model, batch, weights)

    monkeypatch.setattr(loop, "batch_loss", noted)
    _, run = tiny_train(tiny_config(tmp_path, micro_batches=4))
    assert len(rows) == 8 * 4 and sum(rows) == 8 * 6
    for one, other in zip(metrics_of(run), metrics_of(straight), strict=True):
        assert one == pytest.approx(other, rel=2e-4, abs=1e-6)


def test_data_workers_change_nothing(tmp_path, straight):
    config = tiny_config(tmp_path)
    config.data.workers = 2
    _, run = tiny_train(config)
    assert_same_run(run, straight)


def test_gradient_checkpointing_changes_nothing(tmp_path, straight):
    _, run = tiny_train(tiny_config(tmp_path, gradient_checkpointing=True))
    for one, other in zip(metrics_of(run), metrics_of(straight), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


# ---------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("loss_times", "long_times", "told"),
    [
        (1.0, math.nan, r"got loss nan \(short \d.*, long nan\) and gradient norm \d"),
        (math.inf, 1.0, r"got loss \d.* \(short \d.*, long \d.*\) and gradient norm (nan|inf)"),
    ],
    ids=["loss", "gradient"],
)
def test_what_is_not_finite_stops_before_it_reaches_the_weights(
    tmp_path, monkeypatch, loss_times, long_times, told
):
    config = tiny_config(tmp_path)
    model, *others = tiny_parts(config)
    original, calls = loop.batch_loss, []

    def poisoned(*arguments):
        calls.append(1)
        loss, sums = original(*arguments)
        if len(calls) == 5:
            before.update({n: p.detach().clone() for n, p in model.trainable_parameters().items()})
            loss, sums = loss * loss_times, sums * torch.tensor([1.0, long_times])
        return loss, sums

    before: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(loop, "batch_loss", poisoned)
    run = RunDirectory.open(config)
    with pytest.raises(NonFiniteLossError) as raised:
        train(config, model, *others, run)
    message = str(raised.value)
    assert "step 5" in message and re.search(told, message) and "step_3" in message
    assert all(torch.equal(p, before[n]) for n, p in model.trainable_parameters().items())
    monkeypatch.undo()
    result, _ = tiny_train(config)
    assert result.finished  # nothing saved was damaged


def test_a_full_disk_stops_with_the_last_checkpoint_intact(tmp_path, monkeypatch):
    config = tiny_config(tmp_path)
    model, *others = tiny_parts(config)
    save, calls = type(model).save_pretrained, []

    def full(self, folder):
        calls.append(1)
        save(self, folder)
        if len(calls) == 2:
            with open("/dev/full", "wb") as file:
                file.write(b"x" * 100_000)

    monkeypatch.setattr(type(model), "save_pretrained", full)
    run = RunDirectory.open(config)
    with pytest.raises(CheckpointError, match="no space left while saving .*step_6.*step_3 is int"):
        train(config, model, *others, run)
    monkeypatch.undo()
    result, _ = tiny_train(config)
    assert result.finished


def test_steps_are_in_training_mode_and_callbacks_in_evaluation_mode_without_gradients(
    tmp_path, monkeypatch
):
    seen, trained = [], []

    def callback(step, model):
        seen.append((step, model.training, torch.is_grad_enabled()))
        return {"mine": 1.0}

    def noted(model, *others):
        trained.append(model.training)
        return batch_loss(model, *others)

    monkeypatch.setattr(loop, "batch_loss", noted)
    config = tiny_config(tmp_path, steps=5)
    model, *others = tiny_parts(config)
    run = RunDirectory.open(config)
    train(config, model.eval(), *others, run, callback)
    assert trained == [True] * 5
    assert seen == [(4, False, False), (5, False, False)]
    assert [e.get("mine") for e in metrics_of(run)] == [None, 1.0, 1.0]


def test_validation_is_of_as_many_unseen_steps_as_asked(tmp_path):
    config = tiny_config(tmp_path, steps=2, warmup_steps=0, eval_every=2, eval_batches=3)
    model, tokenizer, mixture, load_media = tiny_parts(config)
    step, asked = mixture.step, []

    def noted(index, *share):
        asked.append(index)
        return step(index, *share)

    mixture.step = noted
    train(config, model, tokenizer, mixture, load_media, RunDirectory.open(config))
    assert asked == [0, 1, UNSEEN, UNSEEN + 1, UNSEEN + 2]


def test_sequences_without_text_to_learn_are_an_error(tmp_path):
    config = tiny_config(tmp_path)
    model, tokenizer, mixture, load_media = tiny_parts(config)
    step = mixture.step

    def unlearned(*arguments):
        from dataclasses import replace

        return [(s, replace(r, labels=(-100,) * len(r.labels))) for s, r in step(*arguments)]

    mixture.step = unlearned
    with pytest.raises(ValueError, match="expected text to learn in the sequences of short, long"):
        train(config, model, tokenizer, mixture, load_media, RunDirectory.open(config))


def test_a_source_without_text_to_learn_in_a_step_has_no_loss_in_it():
    numbers = loop.loss_numbers(
        ["short", "long"], torch.tensor([6.0, 0.0]), torch.tensor([3, 0]), [0.5, 1.0]
    )
    assert numbers == {"train/loss": 1.0, "train/loss/short": 2.0}
