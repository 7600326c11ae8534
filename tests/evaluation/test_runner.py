"""Each prediction once, whatever happens in between."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flamingo.choices import Condition, Metric
from flamingo.data.sequence import tokenize
from flamingo.evaluation import runner, work
from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.generation import generate_answers
from flamingo.evaluation.perturbations import BLANK
from flamingo.evaluation.points import positive
from flamingo.evaluation.predictions import PredictionFile
from flamingo.evaluation.prompts import prompt
from flamingo.evaluation.runner import Loaded, Outcome, run_benchmarks
from flamingo.evaluation.scoring import Answer
from flamingo.evaluation_config import EvaluationConfig
from flamingo.testing import synthetic_images
from flamingo.types import ImageRef

from . import tiny, toys

QUERIES = 6
# 0, 1 and 2 shots under three conditions, but nothing to shuffle at 0 shots.
EXPECTED = QUERIES * (3 * 3 - 1)


def predict(folder: Path, load=None, model_id="m", benchmark=None, **settings) -> Outcome:
    def load_tiny(images):
        return Loaded(tiny.model(), tiny.load_media(), torch.float32)

    return run_benchmarks(
        [benchmark or tiny.binding(queries=QUERIES)],
        EvaluationConfig(**{"batch_size": 4, **settings}),
        tiny.tokenizer(),
        folder,
        model_id=model_id,
        precision="float32",
        load=load or load_tiny,
    )


def never(images):
    raise AssertionError("nothing was missing, yet the model was loaded")


def answers(outcome: Outcome) -> dict[tuple, str]:
    return {
        (cell.shots, cell.condition, p.query): p.answer
        for cell, predictions in outcome.cells
        for p in predictions
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("predictions")
    return folder, predict(folder)


def lines(folder: Path) -> list[str]:
    return [line for file in sorted(folder.rglob("*.jsonl")) for line in file.open()]


def test_every_query_is_predicted_once_under_every_condition(done) -> None:
    folder, outcome = done
    assert outcome.new == EXPECTED
    assert len(answers(outcome)) == EXPECTED
    for file in folder.rglob("*.jsonl"):
        keys = [json.loads(line)["key"] for line in file.open()]
        assert len(set(keys)) == len(keys)
    assert len(lines(folder)) == EXPECTED
    assert {file.relative_to(folder).as_posix() for file in folder.rglob("*.jsonl")} == {
        f"synthetic_2_ways/{condition.value}.jsonl" for condition in EvaluationConfig().conditions
    }


def test_a_prediction_says_what_it_depends_on(done) -> None:
    _, outcome = done
    cell, predictions = outcome.cells[-1]
    assert (cell.shots, cell.condition) == (2, Condition.shuffled_answers)
    for episode, prediction in zip(cell.episodes, predictions, strict=True):
        assert prediction.query == episode.query.id
        assert prediction.target == episode.query.answer
        assert prediction.demonstrations == [d.id for d in episode.demonstrations]
        assert prediction.prompt.count("<image>This is a") == 5
        assert prediction.prompt.count("<|endofchunk|>") == 4
        assert prediction.prompt.endswith("<image>This is a")
        assert prediction.answer in prediction.candidates
        assert prediction.score == (prediction.answer == prediction.target)
        assert 0.5 <= prediction.probability <= 1


def test_sure_answers_stay_in_order_on_disk(tmp_path, monkeypatch) -> None:
    odds = [sign * (16 + place) for place in range(6) for sign in (1, -1)]  # in nats

    def sure(reader, benchmark, episodes, **options):
        for place, own in enumerate(odds):
            said = "yes" if own > 0 else "no"
            yield place, Answer(said, said, 1 / (1 + math.exp(-abs(own))))

    monkeypatch.setattr(runner, "answer_episodes", sure)
    benchmark = toys.yes_no(shots=[0], metric=None)
    for _ in range(2):  # as it was said, and as it is read again
        outcome = predict(tmp_path, benchmark=benchmark, conditions=[Condition.real], shots=[0])
        ((_, predictions),) = outcome.cells
        chances = [positive(prediction) for prediction in predictions]
        assert sorted(range(12), key=chances.__getitem__) == sorted(range(12), key=odds.__getitem__)
        assert len(set(chances)) == 12


def test_done_again_it_loads_nothing_and_finds_the_same(done) -> None:
    folder, outcome = done
    before = lines(folder)
    again = predict(folder, load=never)
    assert again.new == 0
    assert answers(again) == answers(outcome)
    assert lines(folder) == before


def test_killed_in_the_middle_of_a_line_it_continues_where_it_was(done, tmp_path) -> None:
    folder, outcome = done
    # As a kill leaves it: one file whole, one torn within its last line, one not begun.
    for name, keep in (("real", 1.0), ("blank_query", 0.4)):
        content = (folder / "synthetic_2_ways" / f"{name}.jsonl").read_bytes()
        target = tmp_path / "synthetic_2_ways" / f"{name}.jsonl"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content[: int(len(content) * keep)])
    kept = sum(line.endswith("\n") for line in lines(tmp_path))
    assert any(not line.endswith("\n") for line in lines(tmp_path)), "no torn line"
    assert QUERIES * 3 <= kept < EXPECTED
    resumed = predict(tmp_path)
    assert resumed.new == EXPECTED - kept
    assert answers(resumed) == answers(outcome)
    assert sorted(json.loads(line)["key"] for line in lines(tmp_path)) == sorted(
        json.loads(line)["key"] for line in lines(folder)
    )


def test_an_interruption_keeps_what_was_predicted(tmp_path, monkeypatch) -> None:
    original = PredictionFile.append
    written = []

    def append(self, predictions):
        if len(written) == 10:
            raise KeyboardInterrupt
        written.extend(predictions)
        original(self, predictions)

    monkeypatch.setattr(PredictionFile, "append", append)
    with pytest.raises(KeyboardInterrupt):
        predict(tmp_path)
    monkeypatch.undo()
    assert len(lines(tmp_path)) == 10
    assert predict(tmp_path).new == EXPECTED - 10


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_batch_size_changes_no_prediction(done, tmp_path, batch_size: int) -> None:
    _, outcome = done
    assert answers(predict(tmp_path, batch_size=batch_size)) == answers(outcome)


def test_how_many_queries_are_read_at_once_changes_no_prediction(
    done, tmp_path, monkeypatch
) -> None:
    _, outcome = done
    monkeypatch.setattr(work, "QUERIES_AT_ONCE", 2)
    assert answers(predict(tmp_path)) == answers(outcome)


def test_begun_on_few_queries_and_finished_on_all_it_is_the_same(done, tmp_path) -> None:
    folder, outcome = done
    assert predict(tmp_path, benchmark=tiny.binding(queries=2, shots=[2])).new == 2 * 3
    finished = predict(tmp_path)
    assert finished.new == EXPECTED - 2 * 3
    assert answers(finished) == answers(outcome)
    assert len(lines(tmp_path)) == len(lines(folder))


def test_each_image_is_resampled_once_for_all_shots_and_conditions(tmp_path) -> None:
    model = tiny.model()
    resampled = []
    model.resampler.register_forward_hook(lambda m, given, _: resampled.append(len(given[0])))
    shown: list[ImageRef] = []

    def load(images):
        shown.extend(images)
        return Loaded(model, tiny.load_media(), torch.float32)

    predict(tmp_path, load=load)
    assert sum(resampled) == len(shown)


def test_other_weights_are_evaluated_anew(done, tmp_path) -> None:
    folder, _ = done
    (tmp_path / "synthetic_2_ways").mkdir()
    for file in folder.rglob("*.jsonl"):
        (tmp_path / "synthetic_2_ways" / file.name).write_bytes(file.read_bytes())
    assert predict(tmp_path, model_id="other").new == EXPECTED
    assert predict(tmp_path, load=never).new == 0, "the first model's predictions stay"


def test_other_annotations_and_another_metric_judge_what_was_said(tmp_path) -> None:
    """Answers are those of before; group, references, score and cluster those of now."""
    folder = tmp_path / "predictions"
    before = predict(folder, benchmark=toys.vqa(shots=(0,)), conditions=[Condition.real])
    assert before.new == len(lines(folder))
    regrouped = toys.vqa(shots=(0,))
    regrouped.task = replace(regrouped.task, metric=Metric.exact_match)
    regrouped.examples = [
        replace(example, group="now", answers=("no such word",)) for example in regrouped.examples
    ]
    after = predict(folder, load=never, benchmark=regrouped, conditions=[Condition.real])
    ((_, old),), ((_, new),) = before.cells, after.cells
    assert [p.answer for p in new] == [p.answer for p in old]
    assert {p.group for p in old} != {p.group for p in new} == {"now"}
    assert {(p.score, *p.references) for p in new} == {(0.0, "no such word")}
    read = PredictionFile(folder / "toy_vqa" / "real.jsonl").by_key
    assert [read[p.key] for p in new] == new, "and so they are on disk"
    size = len(lines(folder))
    predict(folder, load=never, benchmark=regrouped, conditions=[Condition.real])
    assert len(lines(folder)) == size, "nothing new to say"


def test_open_answers_are_decoded_and_cut_as_the_task_says(tmp_path) -> None:
    benchmark, beams = toys.vqa(shots=(0,)), Decoding(max_new_tokens=4, beams=3)
    benchmark.task = replace(benchmark.task, decoding=beams, clean=lambda text: f"[{text}]")
    outcome = predict(tmp_path, benchmark=benchmark, conditions=[Condition.real])
    ((cell, predictions),) = outcome.cells

    reader = tiny.reader()
    sequences = [prompt(episode, benchmark.task.template) for episode in cell.episodes]
    prompts = [tokenize(sequence, reader.tokenizer, 100) for sequence in sequences]
    reader.latents.prepare(medium for own in prompts for medium in own.media)

    def said(decoding: Decoding) -> list[str]:
        answers = dict(generate_answers(reader, prompts, decoding=decoding, batch_size=4))
        return [answers[place].text for place in range(len(prompts))]

    assert [p.answer for p in predictions] == [f"[{text}]" for text in said(beams)]
    assert said(beams) != said(replace(beams, beams=1))


def test_fewer_queries_and_shots_are_a_part_of_more(done) -> None:
    folder, outcome = done
    fewer = predict(folder, load=never, benchmark=tiny.binding(queries=3, shots=[0, 2]))
    assert fewer.new == 0
    everything = answers(outcome)
    assert {key: everything[key] for key in answers(fewer)} == answers(fewer)


def test_controls_can_run_on_fewer_queries(done) -> None:
    folder, _ = done
    outcome = predict(folder, load=never, control_queries=2)
    for cell, predictions in outcome.cells:
        assert len(predictions) == (QUERIES if cell.condition is Condition.real else 2)


def test_the_media_loader_is_given_every_image_that_is_shown(tmp_path) -> None:
    given: list[str] = []

    def load(images):
        given.extend(image.key for image in images)
        return Loaded(tiny.model(), tiny.load_media(), torch.float32)

    outcome = predict(tmp_path, load=load, benchmark=tiny.binding(queries=2, shots=[1]))
    shown = {
        item.media.frames[0].key
        for cell, _ in outcome.cells
        for episode in cell.episodes
        for item in (episode.query, *episode.demonstrations)
    }
    assert len(given) == len(set(given))
    assert set(given) == shown
    assert BLANK.key in shown
    assert shown - {BLANK.key} <= {image.key for image in synthetic_images(48)}


def test_shots_that_do_not_fit_are_left_out_and_named(tmp_path) -> None:
    benchmark = tiny.binding(queries=2, views=4, shots=[1, 2, 4])
    outcome = predict(tmp_path, benchmark=benchmark, max_tokens=30, max_new_tokens=5)
    assert {cell.shots for cell, _ in outcome.cells} == {1}
    by_shots = {left.shots: left.reason for left in outcome.left_out}
    # 5 items of <image> This is a + 4 x (word, end) = 20 + 8 tokens, and 5 for the answer.
    assert by_shots[2] == (
        "its prompts and answers have up to 33 tokens, evaluation.max_tokens is 30"
    )
    assert "need 5 images of each" in by_shots[4]


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_prompts_beyond_learned_positions_are_refused_before_the_first_one(
    tmp_path, family: str
) -> None:
    def load(images):
        model = tiny.model(family, max_position_embeddings=32)
        return Loaded(model, tiny.load_media(), torch.float32)

    benchmark = tiny.binding(queries=2, views=4, shots=[1, 2])
    settings = {"benchmark": benchmark, "load": load, "max_new_tokens": 5}
    if family == "llama":  # rotary positions are computed
        assert predict(tmp_path, **settings).new
        return
    expected = (
        "evaluation.max_tokens: expected at most the 32 positions that the language model has "
        "learned, as prompts and answers have up to 33 tokens, got 2048"
    )
    with pytest.raises(ValueError, match=expected):
        predict(tmp_path, **settings)
    assert not list(tmp_path.rglob("*.jsonl"))
    assert predict(tmp_path, **settings, max_tokens=32).new, "the shorter ones alone"


def test_a_damaged_file_is_named_with_its_line(tmp_path) -> None:
    path = tmp_path / "real.jsonl"
    path.write_text('{"key": 1}\n')
    with pytest.raises(ValueError, match=r"real.jsonl, line 1: expected a prediction"):
        PredictionFile(path)
