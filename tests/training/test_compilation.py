"""torch.compile of what trains: the same numbers, names and files, and no compiling without end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import tiny_config, tiny_parts, tiny_train

from flamingo.run_directory import RunDirectory
from flamingo.training import compilation
from flamingo.training.checkpoint import latest_checkpoint
from flamingo.training.compilation import compile_trained, compiled_modules, has_compiler
from flamingo.training.tracking import VARYING, read_metrics

SCRIPT = Path(__file__).with_name("tiny_run.py")
ROOT = SCRIPT.parents[2]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def test_each_forward_is_compiled_and_names_of_weights_do_not_change(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "has_compiler", lambda _: True)
    model, *_ = tiny_parts(tiny_config(tmp_path))
    before = list(model.state_dict())
    compile_trained(model, CPU)
    assert all("forward" in vars(module) for module in compiled_modules(model))
    assert list(model.state_dict()) == before
    assert list(model.trainable_parameters()) and "_orig_mod" not in str(before)


def test_what_is_compiled_is_in_resampler_and_blocks(tmp_path):
    model, *_ = tiny_parts(tiny_config(tmp_path))
    names = {id(module): name for name, module in model.named_modules()}
    assert {names[id(module)] for module in compiled_modules(model)} == {
        *(f"cross_attention.{i}.{part}" for i in (1, 3) for part in ("attention", "feed_forward")),
        *(f"resampler.layers.0.{part}" for part in ("attention", "feed_forward")),
    }


def test_without_a_compiler_training_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    assert not has_compiler(CPU)
    with pytest.raises(
        ValueError, match=r"training.compile: expected a C\+\+ compiler.*found none"
    ):
        tiny_train(tiny_config(tmp_path, compile=True))


def without_varying(entry: dict) -> dict:
    return {name: value for name, value in entry.items() if not name.startswith(VARYING)}


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(CPU), reason="no C++ compiler on this machine")
@pytest.mark.parametrize("recomputed", [False, True])
def test_compiled_training_is_eager_training(tmp_path, recomputed):
    """As a process of its own: what checks shapes in tests would be compiled along."""
    options = {"steps": 6, "checkpoint_every": 3, "log_every": 1, "eval_every": 3}
    _, eager = tiny_train(tiny_config(tmp_path / "eager", **options))
    words = [f"{k}={v}" for k, v in options.items()]
    words += ["compile=true", f"gradient_checkpointing={str(recomputed).lower()}"]
    subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "compiled"), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=500,
    )
    config = tiny_config(tmp_path / "compiled", **options)
    compiled = RunDirectory(config.directory, config)
    numbers = [read_metrics(run.metrics) for run in (compiled, eager)]
    for one, other in zip(*numbers, strict=True):
        one, other = without_varying(one), without_varying(other)
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    saved = [latest_checkpoint(run.checkpoints) for run in (compiled, eager)]
    names = [set(load_file(c.path / "model.safetensors")) for c in saved if c is not None]
    assert names[0] == names[1]
    # And the checkpoint of either goes on as the other.
    (compiled.checkpoints / "step_6" / "manifest.json").unlink()
    result, _ = tiny_train(config)
    assert result.finished


COUNT = """
import sys, torch
from tiny_run import tiny_config, tiny_parts
from torch._dynamo.utils import counters
from flamingo.training.compilation import compile_trained
model, *_ = tiny_parts(tiny_config(sys.argv[1]))
compile_trained(model, torch.device("cpu"))
graphs = []
for rows, tokens, images, patches in [(2, 9, 2, 16), (3, 12, 3, 16), (4, 15, 2, 9), (5, 7, 4, 9)]:
    ids = torch.randint(2, 500, (rows, tokens))
    ids[:, :images] = model.config.image_token_id
    features = torch.randn(rows, images, 1, patches, model.config.vision_dim)
    model(input_ids=ids, vision_features=features).logits.sum().backward()
    graphs.append(counters["stats"]["unique_graphs"])
print(graphs)
"""


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler(CPU), reason="no C++ compiler on this machine")
def test_other_numbers_of_rows_tokens_and_images_compile_nothing_anew(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", COUNT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{SCRIPT.parent}", "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=500,
        stdout=subprocess.PIPE,
        text=True,
    )
    graphs = [int(word) for word in done.stdout.strip().strip("[]").split(",")]
    # Two blocks and a resampler layer, of which modules of one shape share their code. The second
    # shape may show that what were equal sizes are not; after it nothing is new.
    assert 1 <= graphs[0] <= 4 and graphs[1] <= 6 and graphs[1:] == [graphs[1]] * 3
