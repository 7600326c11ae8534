"""Answers to open questions: greedy generation, or beam search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from flamingo.evaluation.batching import in_batches, longest_first
from flamingo.evaluation.beams import Hypothesis, search
from flamingo.evaluation.decoding import Decoding
from flamingo.evaluation.prefix import begun, common_tokens
from flamingo.evaluation.scoring import Answer, Reader
from flamingo.types import TokenizedSequence

MOSTLY, FEW = 0.75, 4
"""Above this share of prompts that were run again batches only cost time; not judged by fewer."""


def generate_answers(
    reader: Reader, prompts: Sequence[TokenizedSequence], *, decoding: Decoding, batch_size: int
) -> Iterator[tuple[int, Answer]]:
    """Open answers with the index of their prompt, as they come (longest prompts first).

    Each ends at the end of a chunk, at the LM's own end, or after ``decoding.max_new_tokens``. A
    batch has at most ``batch_size`` prompts (each fills a row a beam) and is halved where memory
    runs out. The latents of the prompts' media must be prepared.

    What is said does not depend on the batch size, if the shape of a batch changes no
    log-likelihood by more than half of ``reader.margin``: a prompt for which that could matter is
    run again alone. For greedy generation it could where two tokens are closer than the margin;
    for beam search see :func:`flamingo.evaluation.beams.search`. The probability agrees up to
    such an error. A prompt alone gives the same bits each time on the same machine and libraries.
    Where nearly every prompt had to be run again (an untrained model in bf16), the rest are run
    alone at once.
    """
    asked = again = 0

    def alone(prompt: TokenizedSequence) -> Answer:
        ((answer, _),) = _generate(reader, [prompt], decoding)
        return answer

    def answers(part: Sequence[int], rows: int) -> list[Answer]:
        nonlocal asked, again
        own = [prompts[i] for i in part]
        if len(own) == 1 or again > MOSTLY * max(asked, FEW):
            return [alone(prompt) for prompt in own]
        found = _generate(reader, own, decoding)
        close = [margin < reader.margin for _, margin in found]
        asked, again = asked + len(own), again + sum(close)
        return [
            alone(prompt) if run_again else answer
            for prompt, (answer, _), run_again in zip(own, found, close, strict=True)
        ]

    yield from in_batches(longest_first(prompts), batch_size, answers)


@torch.no_grad()
def _generate(
    reader: Reader, prompts: Sequence[TokenizedSequence], decoding: Decoding
) -> list[tuple[Answer, float]]:
    """Answers of one batch, each with the smallest margin that decided it."""
    ends = reader.model.generation_config.eos_token_id
    assert ends is not None
    ends = {ends} if isinstance(ends, int) else set(ends)
    if decoding.beams == 1:
        found = _greedy(reader, prompts, decoding.max_new_tokens, ends)
    else:
        found = search(reader, prompts, decoding, ends)
    answers = []
    for best in found:
        said = best.ids[:-1] if best.ids[-1] in ends else best.ids
        raw, text = (str(reader.tokenizer.decode(ids)) for ids in (best.ids, said))
        probability, end = math.exp(best.log_likelihood), tuple(best.ids[len(said) :])
        answer = Answer(raw, text.strip(), probability, ids=tuple(said), end=end)
        answers.append((answer, best.margin))
    return answers


def _greedy(
    reader: Reader, prompts: Sequence[TokenizedSequence], max_new_tokens: int, ends: set[int]
) -> list[Hypothesis]:
    """Each prompt's likeliest next tokens, with the smallest margin over a second one."""
    read = [(p.input_ids, p.media) for p in prompts]
    with reader.autocast():
        inputs = begun(reader, read, common_tokens(reader, read))
        output = reader.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    logits = torch.stack(output.logits, dim=1).float()
    logits[..., reader.model.never_generated] = -math.inf  # as generation does
    likely = logits.log_softmax(dim=-1).topk(2, dim=-1).values.cpu()
    new = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
    return [_until_end(ids, row, ends) for ids, row in zip(new, likely, strict=True)]


def _until_end(ids: list[int], likely: Float[Tensor, "token two"], ends: set[int]) -> Hypothesis:
    length = next((n for n, token in enumerate(ids, start=1) if token in ends), len(ids))
    best, second = likely[:length].unbind(dim=1)
    return Hypothesis(ids[:length], best.sum().item(), (best - second).min().item())
