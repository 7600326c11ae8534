"""From episodes to answers: every way a task asks its queries, put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flamingo.data.sequence import tokenize
from flamingo.evaluation.benchmarks.base import Benchmark
from flamingo.evaluation.ensembling import combine, variants
from flamingo.evaluation.generation import generate_answers
from flamingo.evaluation.prompts import Episode, prompt
from flamingo.evaluation.ranking import rank_candidates
from flamingo.evaluation.scoring import Answer, Reader


def answer_episodes(
    reader: Reader,
    benchmark: Benchmark,
    episodes: Sequence[Episode],
    *,
    batch_size: int,
    max_tokens: int,
) -> Iterator[tuple[int, Answer]]:
    """Answers with the index of their episode, as they come.

    Either all episodes have candidates, which are ranked, or none has and answers are generated.
    The latents of all media are prepared here. A prompt above ``max_tokens`` is a ``ValueError``.
    """
    task = benchmark.task
    asked = [
        (index, own, template)
        for index, episode in enumerate(episodes)
        for own, template in variants(
            episode, task.template, task.ensemble, benchmark.seed, benchmark.name
        )
    ]
    prompts = [tokenize(prompt(e, t), reader.tokenizer, max_tokens) for _, e, t in asked]
    reader.latents.prepare(medium for p in prompts for medium in p.media)
    candidates = [[t.answer_text(word) for word in e.candidates] for _, e, t in asked]
    if candidates[0]:
        answers = rank_candidates(
            reader, prompts, candidates, decoding=task.decoding, batch_size=batch_size
        )
    else:
        answers = generate_answers(reader, prompts, decoding=task.decoding, batch_size=batch_size)
    places: dict[int, list[int]] = {}
    for place, (index, _, _) in enumerate(asked):
        places.setdefault(index, []).append(place)
    found: dict[int, Answer] = {}
    for place, answer in answers:
        found[place] = answer
        index = asked[place][0]
        own = places[index]
        if all(p in found for p in own):
            both = [found.pop(p) for p in own]
            yield index, both[0] if len(both) == 1 else combine(both, candidates[own[0]])
