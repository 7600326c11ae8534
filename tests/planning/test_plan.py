"""Whole plans: what a step is made of, days, the table and the file."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flamingo.composition import CONF, compose
from flamingo.config import SourceConfig
from flamingo.data.division import Division
from flamingo.data.mixture import Mixture
from flamingo.model.processor import place_special_tokens
from flamingo.planning.flops import needed_flops, step_flops
from flamingo.planning.memory import device_memory
from flamingo.planning.options import PlanConfig
from flamingo.planning.plan import make_plan, plan_values
from flamingo.planning.shapes import build_shapes
from flamingo.planning.table import duration, plan_text, quantity
from flamingo.planning.workload import (
    MicroBatch,
    SequenceShape,
    Workload,
    assumed_workload,
    measured_workload,
)
from flamingo.testing import (
    VOCABULARY,
    SyntheticSource,
    save_tiny_language_model,
    tiny_tokenizer,
)
from tests.tiny_world import save_cache, save_vision_encoder

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def plan_config(*overrides: str) -> PlanConfig:
    return compose(overrides, PlanConfig, "config")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_has_a_plan_without_weights(experiment: str):
    plan = make_plan(plan_config(f"experiment={experiment}"))
    assert plan.days > 0 and plan.step_flops > 0
    assert experiment in plan_text(plan)
    assert json.loads(json.dumps(plan_values(plan)))["steps"] == plan.steps


def test_days_follow_from_operations_devices_and_the_share_of_their_peak():
    one = make_plan(plan_config("experiment=openflamingo_3b", "training.steps=1000"))
    assert one.needed_flops == pytest.approx(one.step_flops)  # sequences of one length
    expected = 1000 * one.needed_flops / (989e12 * 0.3) / 86400
    assert one.days == pytest.approx(expected)
    eight = make_plan(
        plan_config("experiment=openflamingo_3b", "training.steps=1000", "gpus=8", "gpu=a100")
    )
    assert eight.step_flops == pytest.approx(one.step_flops, rel=1e-4)
    assert eight.days == pytest.approx(expected * 989 / 312 / 8, rel=1e-4)
    other = make_plan(plan_config("experiment=openflamingo_3b", "peak_tflops=98.9", "mfu=0.6"))
    assert other.days == pytest.approx(expected * 5)


@pytest.mark.parametrize(
    ("options", "tflops"),
    [
        (["training.precision=auto"], 989),
        (["training.precision=bf16"], 989),
        (["training.precision=fp32"], 67),
        (["training.precision=fp32", "gpu=a100"], 19.5),
        (["training.precision=fp32", "peak_tflops=98.9"], 98.9),
    ],
)
def test_the_peak_is_that_of_the_precision_that_is_trained_in(options: list[str], tflops: float):
    plan = make_plan(plan_config("experiment=openflamingo_3b", *options))
    assert plan.needed_flops / plan.seconds_per_step == pytest.approx(tflops * 1e12 * 0.3)
    assert f"1 x {tflops:g} TFLOP/s" in plan_text(plan)


def test_what_checkpointing_repeats_is_told_and_costs_no_time_of_its_own():
    """The share of the peak is that of needed operations: repeating lowers it."""
    plain = make_plan(plan_config("experiment=openflamingo_3b"))
    option = "training.gradient_checkpointing=true"
    lean = make_plan(plan_config("experiment=openflamingo_3b", option))
    assert lean.days == plain.days
    assert lean.step_flops > 1.3 * plain.step_flops
    share = f"{plain.step_flops / lean.step_flops:.0%}"
    assert f"recomputation: {quantity(plain.step_flops)}, {share} of what is" in plan_text(lean)


def test_padding_is_no_text_and_is_not_needed():
    lengths = [SequenceShape(8, 3), SequenceShape(2, 1)]
    work = assumed_workload([lengths], frames=1, learned=0.5, gpus=1, division=Division())
    assert (work.tokens, work.padded_tokens) == (10, 16)
    shapes = build_shapes(compose(["experiment=openflamingo_3b"]))
    alone = [
        assumed_workload([[one]], frames=1, learned=0.5, gpus=1, division=Division())
        for one in lengths
    ]
    computed = [sum(part.total for part in step_flops(shapes, one).values()) for one in alone]
    assert needed_flops(shapes, work.batches) == sum(computed)


def test_tokens_a_second_and_tokens_to_train_on_are_of_text():
    options = ["experiment=openflamingo_3b_training", "training.micro_batches=1"]
    plan = make_plan(plan_config(*options, "total_tokens=1_000_000"))
    text = 2048 * 256 + 4096 * 32
    assert plan.work.padded_tokens == 6144 * 256
    assert plan.steps == -(-1_000_000 // text)
    assert f"{text / plan.seconds_per_step:,.0f} tokens and" in plan_text(plan)
    values = plan_values(plan)["step"]
    assert (values["tokens"], values["padded_tokens"]) == (text, 6144 * 256)


@pytest.mark.parametrize(("gpus", "name"), [(1, "one, checkpointed"), (8, "sharded, checkpointed")])
def test_the_plan_says_which_layout_is_configured(gpus: int, name: str):
    options = ["training.sharding=full", "training.gradient_checkpointing=true", f"gpus={gpus}"]
    plan = make_plan(plan_config("experiment=quickstart", "vision=clip_vit_l14", *options))
    assert f"configured: {name} (" in plan_text(plan)
    (configured,) = [d for d in plan_values(plan)["memory"] if d["configured"]]
    assert (configured["sharded"], configured["checkpointing"]) == (gpus > 1, True)


def test_a_number_of_tokens_decides_the_steps():
    plan = make_plan(
        plan_config("experiment=openflamingo_3b", "tokens=100", "sequences=10", "total_tokens=5001")
    )
    assert plan.steps == 6


def test_the_sources_say_how_many_sequences_a_step_has():
    assert make_plan(plan_config("experiment=quickstart")).work.sequences == 11
    assert make_plan(plan_config("experiment=quickstart", "sequences=22")).work.sequences == 22


def assumed(sequences: int = 3, **options) -> Workload:
    values = {"frames": 1, "learned": 0.5, "gpus": 1, "division": Division()} | options
    return assumed_workload([[SequenceShape(8, 3)] * sequences], **values)


def test_cached_features_leave_the_encoder_out_of_a_step():
    shapes = build_shapes(compose(["experiment=openflamingo_3b"]))
    work = assumed(sequences=2, frames=2)
    with_encoder = step_flops(shapes, work)["vision encoder"]
    assert with_encoder.forward == 2 * 3 * 2 * shapes.encoder.flops
    assert with_encoder.backward == 0
    assert step_flops(shapes, work, encodes=False)["vision encoder"].total == 0


def test_an_assumed_step_is_divided_over_devices_and_micro_batches():
    work = assumed(sequences=10, gpus=2, division=Division(micro_batches=2))
    assert [batch.rows for batch in work.batches] == [2, 3, 2, 3]
    assert (work.sequences, work.tokens, work.media, work.learned) == (10, 80, 30, 40)
    assert work.batches[1] == MicroBatch(3, 8, 3, 9, 1, 12, (SequenceShape(8, 3),) * 3)
    with pytest.raises(ValueError, match="sequences: expected at least one a device and step, got"):
        assumed(sequences=1, gpus=2)
    with pytest.raises(ValueError, match="workload: expected at least one batch"):
        Workload((), 1, "nowhere")


def test_sources_in_turn_have_steps_of_their_own():
    """All rows of a step of pages are as long as pages: that decides the memory."""
    options = ["experiment=openflamingo_3b_training", "training.micro_batches=1"]
    work = make_plan(plan_config(*options, "data.mixing=round_robin")).work
    assert [(batch.rows, batch.tokens) for batch in work.batches] == [(2048, 256), (4096, 32)]
    assert work.steps == 2 and work.tokens == (2048 * 256 + 4096 * 32) / 2
    assert "assumed for 2 steps: 2048 of 256 tokens and 4 images, 4096 of 32" in work.origin
    fewer = make_plan(plan_config(*options, "data.mixing=round_robin", "sequences=10")).work
    assert [batch.rows for batch in fewer.batches] == [10, 10]


def test_more_micro_batches_than_sequences_are_one_sequence_each():
    plan = make_plan(plan_config("experiment=quickstart", "gpus=2", "training.micro_batches=8"))
    assert [batch.rows for batch in plan.work.batches] == [1] * 11


def test_an_assumed_step_is_packed_and_divided_by_tokens():
    work = assumed(sequences=10, division=Division(packing=30, micro_batch_tokens=50))
    assert [(b.rows, b.tokens, b.images) for b in work.batches] == [(2, 24, 9), (2, 24, 9)]
    assert (work.sequences, work.tokens, work.media, work.learned) == (10, 80, 30, 40)
    assert work.padded_tokens == 96


def test_sources_of_different_lengths_are_planned_apart():
    """The largest micro-batch has the pages alone, and decides the memory."""
    config = plan_config(
        "experiment=openflamingo_3b_training", "training.micro_batches=24", "gpus=8"
    )
    plan = make_plan(config)
    work, largest = plan.work, plan.configured.batch
    pages, captions = (
        source.sequences for source in (config.data.mmc4, config.data.captions) if source
    )
    assert (work.sequences, work.tokens) == (pages + captions, 256 * pages + 32 * captions)
    assert (largest.tokens, largest.images) == (256, 4)
    assert min(batch.tokens for batch in work.batches) == 32


def test_memory_is_that_of_the_micro_batch_that_needs_most():
    """Pages fill the budget with tokens, captions almost, but with three times the images."""
    config = plan_config(
        *("experiment=openflamingo_3b_training", "gpus=8", "training.micro_batches=1"),
        *("training.micro_batch_tokens=8192", "data.captions.max_tokens=20"),
    )
    plan, shapes = make_plan(config), build_shapes(config)
    one_of_each = {(b.tokens, b.media, b.learned): b for b in plan.work.batches}.values()
    assert max(one_of_each, key=lambda b: b.rows * b.tokens).tokens == 256
    for device in plan.memory:
        sums = [sum(device_memory(shapes, b, device.layout).values()) for b in one_of_each]
        assert device.total == max(sums)
        assert (device.batch.rows, device.batch.tokens, device.batch.media) == (409, 20, 409)
    assert "micro-batch: 409 rows of 20 tokens, 409 media (" in plan_text(plan)


def test_no_batch_is_left_out_that_has_more_of_anything():
    def batch(rows: int, tokens: int, media: int, learned: int = 1) -> MicroBatch:
        return MicroBatch(rows, tokens, 1, media, 1, learned, ())

    most = [batch(2, 50, 2), batch(1, 100, 2), batch(2, 40, 3), batch(2, 10, 1, learned=9)]
    less = [batch(2, 50, 1), batch(1, 90, 2), batch(2, 40, 3), batch(2, 10, 1, learned=1)]
    kept = Workload((*less, *most), 1, "here").largest
    assert {*kept} == {*most} - {most[0]}  # 100 tokens in one row are as many, and a longer row


def test_no_sequence_is_planned_that_a_run_would_drop():
    config = plan_config(
        "experiment=openflamingo_3b", "data.max_tokens=100", "training.packing=100"
    )
    assert make_plan(config).configured.batch.tokens == 100


def test_a_measured_step_has_the_lengths_images_and_learned_tokens_of_its_sources():
    tokenizer = place_special_tokens(
        tiny_tokenizer(), image_token_id=VOCABULARY, end_of_chunk_token_id=VOCABULARY + 1
    )
    sources = [SyntheticSource(pairs=1), SyntheticSource(pairs=3)]
    mixture = Mixture(sources, [SourceConfig(sequences=2)] * 2, tokenizer, 512)
    training = plan_config("name=x").training
    work = measured_workload(mixture, training, world=1, steps=2)
    rows = [row for step in (0, 1) for _, row in mixture.step(step)]
    assert (work.sequences, work.media) == (4, 8)
    assert [batch.images for batch in work.batches] == [3, 3]
    longest = [max(len(row.input_ids) for row in rows[i : i + 4]) for i in (0, 4)]
    assert [batch.tokens for batch in work.batches] == longest
    assert work.learned * 2 == sum(label != -100 for row in rows for label in row.labels)
    packed = measured_workload(mixture, replace(training, packing=512), world=1, steps=2)
    assert [batch.rows for batch in packed.batches] == [1, 1]
    assert (packed.sequences, packed.media, packed.learned) == (4, 8, work.learned)
    two = measured_workload(mixture, training, world=2, steps=2)
    assert (two.sequences, two.media, two.learned) == (work.sequences, work.media, work.learned)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch) -> list[str]:
    save_tiny_language_model(tmp_path / "language", layers=30)
    save_vision_encoder(tmp_path / "vision")
    save_cache(tmp_path / "cache")
    monkeypatch.setenv("FLAMINGO_CACHE", str(tmp_path / "cache"))
    return [
        "experiment=quickstart",
        f"language.name={tmp_path / 'language'}",
        f"vision.name={tmp_path / 'vision'}",
    ]


def test_a_plan_measures_the_configured_sources(tiny):
    plan = make_plan(plan_config(*tiny, "measure=true", "measured_steps=2", "gpus=2"))
    assert plan.work.sequences == 11
    assert plan.work.media == 8 * 4 + 3 * 8
    assert "measured on 2 steps of easy_vqa, binding" in plan_text(plan)


def test_sources_in_turn_are_measured_equally_often(tiny):
    """Three steps would be two of the one source and one of the other."""
    options = ["measure=true", "measured_steps=3", "data.mixing=round_robin"]
    plan = make_plan(plan_config(*tiny, *options))
    assert plan.work.steps == 4
    assert plan.work.sequences == 11 / 2 and plan.work.media == (8 * 4 + 3 * 8) / 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gpus=0", "gpus: expected >= 1, got 0"),
        ("mfu=1.5", r"mfu: expected in \(0, 1\], got 1.5"),
        ("gpu=h10", "gpu: expected one of .*h100.*, got 'h10'"),
        ("total_tokens=0", "total_tokens: expected > 0 or null, got 0"),
        ("gppus=2", "gppus: unknown .* did you mean gpus"),
        ("learned=2", "learned: expected in .*, got 2"),
    ],
)
def test_nonsense_is_named(override: str, message: str):
    with pytest.raises(ValueError, match=message):
        plan_config("experiment=quickstart", override)


def test_quantities_and_durations_read_well():
    assert [quantity(n) for n in (0, 1234, 999.6e9, 2.4e15)] == ["0", "1.23 k", "1 T", "2.4 P"]
    durations = [duration(n) for n in (90, 7200, 86400 * 3)]
    assert durations == ["1.5 minutes", "2.0 hours", "3.0 days"]


@pytest.mark.slow
def test_the_command_prints_the_plan_and_writes_it(tmp_path: Path):
    out = tmp_path / "plans" / "9b.json"
    result = subprocess.run(
        [
            sys.executable,
            "experiments/plan.py",
            "experiment=openflamingo_9b",
            "gpus=8",
            f"out={out}",
        ],
        cwd=CONF.parent,
        env={"PYTHONPATH": str(CONF.parent), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "language model   6,649,286,656   frozen" in result.stdout
    written = json.loads(out.read_text())
    assert written["parameters"]["language_model"] == {"count": 6649286656, "trained": False}
    assert len(written["memory"]) == 4
