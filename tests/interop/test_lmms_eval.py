"""The adapter under the real lmms-eval: its registry, evaluator and command, on local tasks.

``make test-lmms-eval`` runs this in an environment that has lmms-eval.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip(
    "lmms_eval",
    reason="lmms-eval is not installed: it requires torchvision, of which there is no build for "
    "the CPU torch that tests run with; make test-lmms-eval makes an environment of its own",
)

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager

from flamingo import FlamingoForConditionalGeneration, FlamingoProcessor
from flamingo.interop.lmms_eval import Flamingo

from . import lmms_world

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lmms")
    os.environ["HF_DATASETS_CACHE"] = os.environ["LMMS_EVAL_DATASETS_CACHE"] = str(folder / "cache")
    return lmms_world.save(folder)


@pytest.fixture(scope="module")
def ours(world) -> tuple[FlamingoForConditionalGeneration, FlamingoProcessor]:
    folder = world / "model"
    model = FlamingoForConditionalGeneration.from_pretrained(folder)
    return model, FlamingoProcessor.from_pretrained(folder)


def evaluate(
    world: Path,
    out: Path,
    task: str,
    *,
    batch_size: int = 3,
    limit: int | None = None,
    use_cache: Path | None = None,
    **args: Any,
) -> list[dict[str, Any]]:
    """lmms-eval's samples of a task; ``args`` are the model's."""
    given = {"pretrained": world / "model", "precision": "fp32", "predictions": out, **args}
    results = simple_evaluate(
        model="flamingo",
        model_args=",".join(f"{name}={value}" for name, value in given.items()),
        tasks=[task],
        task_manager=TaskManager(
            include_path=str(world / "tasks"), include_defaults=False, model_name="flamingo"
        ),
        batch_size=batch_size,
        limit=limit,
        use_cache=None if use_cache is None else str(use_cache),
        bootstrap_iters=0,
    )
    return results["samples"][task]


def written(out: Path, task: str) -> dict[str, dict[str, Any]]:
    lines = (out / f"{task}.jsonl").read_text().splitlines()
    # A probability agrees between batches up to rounding only.
    return {line["query"]: line | {"probability": 0} for line in map(json.loads, lines)}


def inputs(processor: FlamingoProcessor, line: dict[str, Any], more: str = "") -> Any:
    images = [
        lmms_world.document(name)["image"] for name in [*line["demonstrations"], line["query"]]
    ]
    return processor(line["prompt"] + more, images)


def generated(ours, line: dict[str, Any], **options: Any) -> str:
    """What our model says to a prompt as it is on disk, with its images."""
    model, processor = ours
    batch = inputs(processor, line)
    new = model.generate(**batch, **options)[0, batch["input_ids"].shape[1] :]
    return processor.tokenizer.decode(new, skip_special_tokens=True).strip()


def test_lmms_eval_finds_the_model_by_the_entry_point() -> None:
    assert get_model("flamingo") is Flamingo


@pytest.mark.parametrize("shots", [0, 2])
def test_lmms_eval_gets_what_our_model_generates_on_the_written_prompts(
    world, ours, tmp_path, shots
) -> None:
    samples = evaluate(world, tmp_path, "shapes", shots=shots)
    lines = written(tmp_path, "shapes")
    assert [sample["doc_id"] for sample in samples] == list(range(lmms_world.TEST))
    answers = set()
    for sample in samples:
        line = lines[f"test/{sample['doc_id']}"]
        demonstrations = "".join(
            f"<image>what colour is it? {lmms_world.document(name)['colour']}<|endofchunk|>"
            for name in line["demonstrations"]
        )
        assert line["prompt"] == f"{demonstrations}<image>what colour is it?"
        assert line["shots"] == len(line["demonstrations"]) == shots
        expected = generated(ours, line, max_new_tokens=5).split(".")[0].strip()
        assert sample["filtered_resps"] == [expected] == [line["answer"]]
        answers.add(expected)
    assert len(answers) > 1


def test_demonstrations_are_nested_without_the_query_s_image_and_the_same_under_any_batch_or_limit(
    world, tmp_path
) -> None:
    evaluate(world, tmp_path / "1", "shapes", shots=6)
    longest = written(tmp_path / "1", "shapes")
    assert "train/3" not in longest["test/0"]["demonstrations"]  # the same picture
    assert any("train/3" in line["demonstrations"] for line in longest.values())
    evaluate(world, tmp_path / "2", "shapes", shots=2, batch_size=1, limit=2)
    few = written(tmp_path / "2", "shapes")
    assert set(few) == {"test/0", "test/1"}
    for query, line in few.items():
        assert line["demonstrations"] == longest[query]["demonstrations"][-2:]
    evaluate(world, tmp_path / "3", "shapes", shots=6, batch_size=2)
    assert written(tmp_path / "3", "shapes") == longest
    evaluate(world, tmp_path / "4", "shapes", shots=6, seed=1)
    other = written(tmp_path / "4", "shapes")
    assert any(other[q]["demonstrations"] != longest[q]["demonstrations"] for q in longest)


def test_without_a_split_of_demonstrations_one_must_be_named(world, ours, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"pool: .*shapes_without_train.*\['test', 'train'\]"):
        evaluate(world, tmp_path, "shapes_without_train", shots=1)
    samples = evaluate(world, tmp_path, "shapes_without_train", shots=1, pool="train")
    lines = written(tmp_path, "shapes_without_train")
    for sample in samples:  # two beams, as transformers has them
        line = lines[f"test/{sample['doc_id']}"]
        expected = generated(ours, line, max_new_tokens=5, num_beams=2)
        assert sample["filtered_resps"] == [expected.split("\n\n")[0].strip()]


def test_multiple_choice_takes_the_likeliest_continuation(world, ours, tmp_path) -> None:
    model, processor = ours
    samples = evaluate(world, tmp_path, "shapes_choice", shots=2)
    lines = [
        json.loads(line) for line in (tmp_path / "shapes_choice.jsonl").read_text().splitlines()
    ]
    for sample in samples:
        own = [line for line in lines if line["query"] == f"test/{sample['doc_id']}"]
        assert [line["candidates"] for line in own] == [[" red"], [" green"], [" blue"], [" grey"]]
        expected = []
        for line in own:
            batch = inputs(processor, line, line["candidates"][0])
            with torch.no_grad():
                likely = model(**batch).logits[0, -2].log_softmax(-1)
            (token,) = processor.tokenizer(line["candidates"][0])["input_ids"]
            expected.append(likely[token].item())
        losses = [pair[0] for pair in sample["filtered_resps"]]
        assert losses == pytest.approx([-value for value in expected], abs=1e-3)
        label = lmms_world.document(f"test/{sample['doc_id']}")["label"]
        assert sample["acc"] == float(torch.tensor(expected).argmax() == label)


def test_rounds_are_prompts_that_follow_one_another(world, ours, tmp_path) -> None:
    samples = evaluate(world, tmp_path, "shapes_rounds")
    lines = [
        json.loads(line) for line in (tmp_path / "shapes_rounds.jsonl").read_text().splitlines()
    ]
    for sample in samples:
        first, second = [line for line in lines if line["query"] == f"test/{sample['doc_id']}"]
        assert first["prompt"] == "<image>what colour is it?"
        said = first["answer"]
        assert second["prompt"] == f"<image>you said {said}. what shape is it?"
        assert second["answer"] == generated(ours, second, max_new_tokens=3)
        assert sample["rounds"] == 2
    with pytest.raises(NotImplementedError, match="shots: expected 0 for tasks of several rounds"):
        evaluate(world, tmp_path, "shapes_rounds", shots=1)


def test_text_alone_has_text_demonstrations(world, tmp_path) -> None:
    evaluate(world, tmp_path, "sums", shots=1)
    for line in written(tmp_path, "sums").values():
        (demonstration,) = line["demonstrations"]
        assert "<image>" not in line["prompt"] and demonstration.startswith("train/")


def test_lmms_eval_s_cache_answers_the_second_time(world, tmp_path) -> None:
    first = evaluate(world, tmp_path / "p", "shapes", use_cache=tmp_path / "cache")
    again = evaluate(world, tmp_path / "p", "shapes", use_cache=tmp_path / "cache")
    assert [s["filtered_resps"] for s in again] == [s["filtered_resps"] for s in first]
    assert len((tmp_path / "p" / "shapes.jsonl").read_text().splitlines()) == lmms_world.TEST


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"kind": "poem"}, "kind: expected one of vqa"),
        ({"max_tokens": 0}, "max_tokens: expected a number >= 1"),
        ({"pool": "dev", "shots": 1}, "got 'dev'"),
    ],
)
def test_wrong_arguments_are_named(world, tmp_path, args, message) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(world, tmp_path, "shapes", **args)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_of_lmms_eval_gives_the_same_with_any_number_of_processes(
    world, tmp_path, processes
) -> None:
    launcher = []
    if processes > 1:
        launcher = ["torch.distributed.run", f"--nproc_per_node={processes}", "-m"]
    arguments = f"pretrained={world / 'model'},shots=2,precision=fp32,predictions={tmp_path / 'p'}"
    command = [
        sys.executable, "-m", *launcher, "lmms_eval", "--model", "flamingo", "--model_args",
        arguments, "--tasks", "shapes", "--batch_size", "2", "--output_path", str(tmp_path / "out"),
        "--include_path", str(world / "tasks"), "--log_samples", "--verbosity", "DEBUG",
    ]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("*samples_shapes.jsonl")
    logged = {
        f"test/{line['doc_id']}": line["filtered_resps"]
        for line in map(json.loads, file.read_text().splitlines())
    }
    evaluate(world, tmp_path / "here", "shapes", shots=2)
    lines = written(tmp_path / "p", "shapes")
    assert lines == written(tmp_path / "here", "shapes")
    assert logged == {query: line["answer"] for query, line in lines.items()}
    assert len((tmp_path / "p" / "shapes.jsonl").read_text().splitlines()) == lmms_world.TEST
