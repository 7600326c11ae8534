"""experiments/benchmark.py from its configuration to its files, on a tiny language model."""

from __future__ import annotations

import json

import pytest
import torch

from experiments import benchmark
from experiments.benchmark import BenchmarkConfig
from flamingo.benchmarking import open_flamingo, packages, world
from flamingo.benchmarking.cases import Case
from flamingo.benchmarking.contender import Who
from flamingo.benchmarking.roofline import Machine
from flamingo.composition import compose
from flamingo.testing import save_tiny_language_model

SIZES = [
    *("short_rows=2", "short_tokens=16", "short_images=2", "documents=[2,1]"),
    *("document_tokens=24", "document_images=3", "prompts=2", "few_shots=1", "many_shots=3"),
    *("decoded_tokens=2", "new_tokens=2", "beams=2", "many_candidates=6", "ranking_rows=4"),
    *("pool=4", "queries=3", "peer_queries=2", "evaluation_beams=1", "patches=4"),
    "vision_dim=16",
]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Nothing can be downloaded; a function of further overrides."""
    save_tiny_language_model(tmp_path / "lm")

    def refuse(*_: object) -> None:
        raise ConnectionError("no package index within reach")

    monkeypatch.setattr(packages, "prepare", refuse)
    monkeypatch.setattr(benchmark, "measure", lambda *_: Machine(flops=1e11, bytes=1e10))

    def make(*overrides: str) -> BenchmarkConfig:
        given = [f"sizes.{size}" for size in SIZES]
        given += [f"language_model={tmp_path / 'lm'}", f"root={tmp_path}", "name=tiny"]
        given += ["every=2", "rounds=1", "warmup=0", "precision=fp32", "device=cpu"]
        return compose([*given, *overrides], BenchmarkConfig, "benchmark_speed")

    return make


def read(config: BenchmarkConfig, case: Case) -> dict:
    return json.loads((config.folder / "cases" / f"{case.name}.json").read_text())


def test_every_case_is_measured_and_peers_that_cannot_be_had_are_named(config):
    own = config("memory=false")
    benchmark.main(own)
    table = (own.folder / "table.md").read_text()
    for case in Case:
        values = read(own, case)
        peers = {Who.open_flamingo.value, Who.flamingo_pytorch.value}
        assert {values["failed"][peer] for peer in peers} == {"no package index within reach"}
        assert Who.ours.value in values["measured"]
        alone = case in (Case.resampler, Case.cross_attention, Case.optimizer)
        assert (Who.bare.value in values["measured"]) is not alone
        lacks = (Case.rank_few, Case.rank_many, Case.cross_attention, Case.optimizer)
        assert (Who.idefics.value in values["measured"]) is (case not in lacks)
        for measured in values["measured"].values():
            assert len(measured["seconds"]) == 1
            assert measured["counted"]["bytes"] > 0
        assert f"(`{case.name}`)" in table
    assert (own.folder / "speed.png").is_file()


def test_finished_cases_are_kept_and_overwrite_times_them_again(config, monkeypatch):
    cases = ["cases=[decode]", "contenders=[bare,ours]", "count=false"]
    own = config(*cases)
    benchmark.main(own)
    first = read(own, Case.decode)
    benchmark.main(config(*cases, "overwrite=true"))
    again = read(own, Case.decode)
    assert first["measured"]["ours"]["seconds"] != again["measured"]["ours"]["seconds"]
    monkeypatch.setattr(benchmark, "prepare", None)  # a kept case needs no model
    benchmark.main(own)
    assert read(own, Case.decode) == again
    with pytest.raises(ValueError, match="made with other settings .*every 2 -> 1"):
        benchmark.main(config(*cases, "every=1"))
    monkeypatch.setattr(benchmark, "machine_name", lambda _: "another GPU")
    with pytest.raises(ValueError, match=r"made with other settings \(machine '.*CPU.* GPU'\)"):
        benchmark.main(own)


@pytest.mark.parametrize(
    ("device", "chosen"), [("null", None), ("cuda", None), ("cuda:0", 0), ("cuda:3", 3)]
)
def test_a_gpu_is_made_the_current_one_where_it_has_a_number(config, monkeypatch, device, chosen):
    made_current = []

    def set_device(device: torch.device) -> None:
        assert device.index is not None, "torch refuses one without"
        made_current.append(device.index)

    def prepare(own: BenchmarkConfig, device: torch.device) -> None:
        raise InterruptedError(device.type)

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(benchmark, "available_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(benchmark, "prepare", prepare)
    with pytest.raises(InterruptedError, match="cuda"):
        benchmark.main(config(f"device={device}"))
    assert made_current == ([] if chosen is None else [chosen])


def test_a_cpu_has_its_model_s_name_where_the_system_tells(tmp_path):
    assert benchmark.cpu_model(tmp_path / "none") == ""
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast: 2\nmodel name\t: b\n")
    assert benchmark.cpu_model(tmp_path / "cpuinfo") == "Fast: 2"


def test_nothing_is_timed_when_a_peer_with_our_weights_disagrees(config, monkeypatch):
    def other_weights(ours, language_model):
        return None

    class Other:
        def __init__(self, model, tokens) -> None:
            self.model = model

        def logits(self, work):
            return own_logits(work) + 1.0

    built = []
    real = world.Ours

    def remember(*arguments):
        built.append(real(*arguments))
        return built[-1]

    def own_logits(work):
        return built[-1].logits(work)

    monkeypatch.setattr(world, "Ours", remember)
    monkeypatch.setattr(world, "OpenFlamingo", Other)
    monkeypatch.setattr(world, "build_open_flamingo", other_weights)
    own = config("contenders=[ours,open_flamingo]")
    with pytest.raises(ValueError, match="nothing was timed"):
        benchmark.main(own)
    assert not own.folder.exists()


def test_curves_have_their_places(config):
    own = config(
        "curves=true",
        "contenders=[bare,ours,idefics]",
        "growth.shots=[0,1,3]",
        "growth.queries=[2,3]",
        "growth.seeds=[1,2]",
        "growth.shot_counts=[1,2]",
        "growth.padded=[3,6]",
        "growth.peers_padded=3",
    )
    benchmark.main(own)
    points = json.loads((own.folder / "curves.json").read_text())["points"]
    places = {(point["curve"], point["who"], point["x"]) for point in points}
    ours = Who.ours.value
    assert {x for curve, who, x in places if curve == "decode" and who == ours} == {0, 1, 3}
    assert {x for curve, who, x in places if curve == "padding" and who == ours} == {3, 6}
    assert ("padding", Who.idefics.value, 3) in places
    assert ("padding", Who.idefics.value, 6) not in places
    resampled = {
        (point["curve"], point["x"]): point["resampled"]
        for point in points
        if point["resampled"] is not None
    }
    # Every image once, however often it is shown: a pool of four and the queries' own.
    assert resampled[("queries", 3)] - resampled[("queries", 2)] <= 1 + 4
    assert resampled[("seeds", 2)] <= 4 + 2
    assert resampled[("shot counts", 2)] == resampled[("shot counts", 1)]
    assert (own.folder / "curves.png").is_file()


def test_ours_takes_part_and_something_is_timed(config):
    with pytest.raises(ValueError, match=r"contenders: expected ours among them, got \['bare'\]"):
        config("contenders=[bare]")
    with pytest.raises(ValueError, match="cases: expected at least one"):
        config("cases=[]")


def test_the_plan_of_wheels_is_pinned():
    for package in packages.Package:
        wheel = package.value
        assert len(wheel.sha256) == 64
        assert (
            wheel.filename == f"{wheel.package.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
        )


@pytest.mark.slow
def test_open_flamingo_answers_and_ranks_as_ours_do(config, monkeypatch):
    monkeypatch.undo()  # the package index is asked after all
    own = config("contenders=[ours,open_flamingo]")
    ready = benchmark.prepare(own, benchmark.torch.device("cpu"))
    assert ready.world.agreement[Who.open_flamingo] < 1e-4
    for case in (Case.greedy, Case.beams, Case.rank_few, Case.rank_many):
        said = []
        for who in (Who.ours, Who.open_flamingo):
            run = ready.works.run(case, ready.world.contenders[who])
            said.append(run.call(run.prepare()).float())
        assert said[0] == pytest.approx(said[1], abs=1e-3), case
    assert isinstance(ready.world.contenders[Who.open_flamingo], open_flamingo.OpenFlamingo)
