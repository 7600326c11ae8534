"""Episodes are answered as their task says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flamingo.data.sequence import tokenize
from flamingo.evaluation.answering import answer_episodes
from flamingo.evaluation.benchmarks.binding import BINDING_TASK
from flamingo.evaluation.ensembling import Ensemble, combine, variants
from flamingo.evaluation.prompts import Template, prompt
from flamingo.evaluation.ranking import rank_candidates

from . import tiny


def asked(ensemble: Ensemble):
    benchmark = tiny.binding(queries=5)
    return replace(benchmark, task=replace(BINDING_TASK, ensemble=ensemble))


def answers(benchmark, batch_size: int = 4):
    found = answer_episodes(
        tiny.reader(),
        benchmark,
        benchmark.episodes(2, 0),
        batch_size=batch_size,
        max_tokens=500,
    )
    return dict(found)


def test_an_ensemble_puts_together_what_its_variants_say_alone() -> None:
    ensemble = Ensemble(3, (Template("It is a", " {answer}"),))
    benchmark = asked(ensemble)
    together, reader = answers(benchmark), tiny.reader()
    assert sorted(together) == list(range(5))
    for index, episode in enumerate(benchmark.episodes(2, 0)):
        own = variants(episode, BINDING_TASK.template, ensemble, benchmark.seed, benchmark.name)
        assert len(own) == 6
        alone = []
        for variant, template in own:
            tokens = tokenize(prompt(variant, template), reader.tokenizer, 500)
            reader.latents.prepare(tokens.media)
            words = [f" {word}" for word in episode.candidates]
            ((_, answer),) = rank_candidates(
                reader, [tokens], [words], decoding=BINDING_TASK.decoding, batch_size=1
            )
            alone.append(answer)
        expected = combine(alone, [f" {word}" for word in episode.candidates])
        assert together[index].text == expected.text
        assert together[index].scores == pytest.approx(expected.scores, abs=1e-4)


def test_asked_in_one_way_nothing_is_put_together() -> None:
    assert answers(asked(Ensemble())) == answers(tiny.binding(queries=5))


def test_the_batch_size_changes_no_answer() -> None:
    benchmark = asked(Ensemble(2))
    few, many = answers(benchmark, batch_size=1), answers(benchmark, batch_size=50)
    assert {i: a.text for i, a in few.items()} == {i: a.text for i, a in many.items()}
