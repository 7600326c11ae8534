"""Throughput, waiting, use of devices and memory: literal numbers, one process and several."""

import time
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from tiny_run import tiny_config, tiny_parts

from flamingo.run_directory import RunDirectory
from flamingo.training import loop, timing
from flamingo.training.loop import train
from flamingo.training.timing import GIB, Timing, Utilisation, peak_memory
from flamingo.training.tracking import read_metrics


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def accelerator() -> Accelerator:
    return Accelerator(mixed_precision="no")


def numbers_of(of: Timing) -> dict[str, float]:
    of.work.add(tokens=100, padded_tokens=150, images=8, seconds=1.5, waited=0.5, flops=10**12)
    of.work.add(tokens=300, padded_tokens=350, images=4, seconds=0.5, waited=0.1, flops=3 * 10**12)
    return of.flush()


def test_rates_are_over_all_steps_since_the_last_entry():
    of = Timing(accelerator(), Utilisation(lambda batch: 0, peak=4e12))
    numbers = numbers_of(of)
    assert numbers.pop("time/unix") == pytest.approx(time.time(), abs=60)
    assert numbers.pop("memory/peak_gib") > 0
    assert numbers == pytest.approx(
        {
            "time/tokens_per_second": 200,
            "time/token_efficiency": 0.8,
            "time/images_per_second": 6,
            "time/step_seconds": 1.0,
            "time/data_seconds": 0.3,
            "time/data_share": 0.3,
            "time/tflops_per_second": 2.0,
            "time/mfu": 0.5,
        }
    )
    of.work.add(tokens=7, padded_tokens=2 * 7, images=0, seconds=1.0, waited=0.0)
    assert of.flush()["time/tokens_per_second"] == 7


def test_what_is_not_known_is_not_logged():
    without_peak = numbers_of(Timing(accelerator(), Utilisation(lambda batch: 0, peak=None)))
    assert "time/mfu" not in without_peak and without_peak["time/tflops_per_second"] == 2
    nothing = numbers_of(Timing(accelerator(), None))
    assert not {"time/mfu", "time/tflops_per_second"} & nothing.keys()


def test_of_two_processes_operations_add_up_and_the_longest_wait_and_most_memory_count(
    monkeypatch,
):
    def gathered(own):
        (mine,) = own
        other = {"work": mine["work"] | {"waited": 1.0, "flops": 10**12}, "memory": 5000 * GIB}
        return [mine, other]

    monkeypatch.setattr(timing, "gather_object", gathered)
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: 2))
    numbers = numbers_of(Timing(accelerator(), Utilisation(lambda batch: 0, peak=4e12)))
    assert numbers["time/tokens_per_second"] == 200  # of all processes already
    assert numbers["time/data_share"] == 0.5
    assert numbers["time/tflops_per_second"] == 2.5
    assert numbers["time/mfu"] == pytest.approx(5 / 2 / 8)
    assert numbers["memory/peak_gib"] == 5000


@pytest.mark.parametrize(("waited", "shown"), [(0.09, None), (0.25, "25%")])
def test_the_bar_tells_of_waiting_only_where_it_matters(waited, shown):
    of = Timing(accelerator(), None)
    of.work.add(tokens=1234, padded_tokens=2 * 1234, images=5, seconds=1.0, waited=waited)
    bar = {"tok/s": "1234", "img/s": "5.0"}
    assert of.bar() == (bar if shown is None else bar | {"waits": shown})


def test_a_process_s_peak_memory_holds_what_it_held():
    held = torch.ones(64 * 2**20)  # 256 MiB
    peak = peak_memory(torch.device("cpu"))
    assert peak is not None and held.nbytes < peak < 2**42
    assert peak_memory(torch.device("meta")) is None


def test_the_loop_measures_how_long_it_waits_and_computes_and_not_how_long_it_evaluates(
    tmp_path, monkeypatch
):
    config = tiny_config(tmp_path, steps=3, log_every=3, eval_every=1, micro_batches=2)
    model, tokenizer, mixture, load_media = tiny_parts(config)
    rows = [row for index in range(3) for _, row in mixture.step(index)]
    clock, seen = [0.0], []

    def taking(seconds, function):
        def slow(*arguments):
            clock[0] += seconds
            return function(*arguments)

        return slow

    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(loop, "batch_loss", taking(3.0, loop.batch_loss))  # twice a step
    mixture.step = taking(2.0, mixture.step)
    callback = taking(100.0, lambda step, model: {})
    run = RunDirectory.open(config)

    def flops(batch):
        seen.append(len(batch.input_ids))
        return 10**9

    utilisation = Utilisation(flops, peak=1e12)
    parts = (model, tokenizer, mixture, load_media)
    train(config, *parts, run, callback, utilisation=utilisation)
    (entry,) = read_metrics(run.metrics)
    assert seen == [3, 3] * 3  # rows
    images = sum(len(medium.frames) for row in rows for medium in row.media)
    expected = {
        "time/data_seconds": 2,
        "time/step_seconds": 2 + 2 * 3,
        "time/data_share": 2 / 8,
        "time/images_per_second": images / 24,
        "time/tokens_per_second": sum(len(row.input_ids) for row in rows) / 24,
        "time/tflops_per_second": 2e-3 / 8,
        "time/mfu": 2e-3 / 8,
    }
    assert {name: entry[name] for name in expected} == pytest.approx(expected)
