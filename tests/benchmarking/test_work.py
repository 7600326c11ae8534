"""The tokens, labels and features that everybody gets."""

import torch

from flamingo.benchmarking.cases import SizesConfig, Works
from flamingo.benchmarking.few_shot import EvaluationWork
from flamingo.benchmarking.work import (
    FeatureShape,
    Tokens,
    candidates,
    prompt_work,
    training_work,
)
from flamingo.data.sequence import special_token_id
from flamingo.evaluation.prompts import prompt
from flamingo.evaluation_config import DemonstrationsConfig
from flamingo.model.processor import prepare_tokenizer
from flamingo.testing import VOCABULARY, tiny_tokenizer
from flamingo.types import IMAGE_TOKEN

TOKENS = Tokens(vocabulary=50, image=50, end_of_chunk=51, first=10)
SHAPE = FeatureShape(patches=4, dim=6)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_document_has_its_images_at_even_distances_and_learns_all_but_them():
    work = training_work(TOKENS, SHAPE, images=[2, 1], length=8, padded=3, generator=generator())
    places = (work.input_ids == TOKENS.image).nonzero().tolist()
    assert places == [[0, 0], [0, 4], [1, 0]]
    assert (work.input_ids == TOKENS.end_of_chunk).nonzero().tolist() == [[0, 3], [0, 7], [1, 7]]
    assert (work.labels == -100).nonzero().tolist() == places
    learned = work.labels != -100
    assert torch.equal(work.labels[learned], work.input_ids[learned])
    assert work.features.shape == (2, 3, 1, 4, 6)
    filled = work.features.flatten(2).any(dim=2)
    assert filled.tolist() == [[True, True, False], [True, False, False]]


def test_a_prompt_shows_every_demonstration_and_last_the_query():
    work = prompt_work(
        TOKENS,
        SHAPE,
        rows=2,
        shots=3,
        tokens_a_shot=4,
        new_tokens=5,
        generator=generator(),
    )
    assert work.input_ids.shape == (2, 3 * 4 + 2)
    assert (work.input_ids[0] == TOKENS.image).nonzero().flatten().tolist() == [0, 4, 8, 12]
    assert (work.input_ids[0] == TOKENS.end_of_chunk).nonzero().flatten().tolist() == [3, 7, 11]
    assert work.features.shape == (2, 4, 1, 4, 6)


def test_the_same_seed_draws_the_same_work():
    a, b = (
        prompt_work(
            TOKENS, SHAPE, rows=1, shots=1, tokens_a_shot=4, new_tokens=1, generator=generator()
        )
        for _ in range(2)
    )
    assert torch.equal(a.input_ids, b.input_ids)
    assert torch.equal(a.features, b.features)


def test_candidates_differ_and_their_ids_are_those_of_their_text():
    tokenizer = tiny_tokenizer()
    found = candidates(tokenizer, 20, generator())
    assert len(found) == len(set(found.values())) == 20
    for text, ids in found.items():
        assert text.startswith(" ")
        assert tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) == ids


def test_peers_get_the_first_prompts_of_the_evaluation_with_their_images_in_order():
    tokenizer = prepare_tokenizer(tiny_tokenizer(), VOCABULARY)
    features = torch.arange(9.0)[:, None, None, None].expand(9, 1, 4, 6)
    work = EvaluationWork(
        tokenizer=tokenizer,
        features=features,
        pool=6,
        queries=3,
        peer_queries=2,
        shots=(2,),
        seeds=(0,),
        batch_size=4,
        new_tokens=3,
        beams=1,
        demonstrations=DemonstrationsConfig(),
    )
    (batch,) = work.batches()
    assert batch.features.shape == (2, 3, 1, 4, 6)
    template = work.benchmark().task.template
    episodes = work.benchmark().episodes(2, 0)[:2]
    for row, episode in enumerate(episodes):
        shown = [m.frames[0].key for m in prompt(episode, template).media]
        numbers = batch.features[row, :, 0, 0, 0].long().tolist()
        assert [f"speed/{number}" for number in numbers] == shown
        assert numbers[-1] >= work.pool > max(numbers[:-1])
    image = special_token_id(tokenizer, IMAGE_TOKEN)
    assert batch.input_ids.eq(image).sum(dim=1).tolist() == [3, 3]
    assert batch.mask[:, -1].all()


def test_the_evaluation_with_demonstrations_in_common_shows_the_first_of_the_pool_to_all():
    tokenizer = prepare_tokenizer(tiny_tokenizer(), VOCABULARY)
    sizes = SizesConfig(pool=6, queries=3, many_shots=4, patches=4, vision_dim=6)
    works = Works(sizes, TOKENS, torch.device("cpu"), torch.float32, tokenizer)

    def shown(common: bool) -> list[list[str]]:
        episodes = works.evaluation(common=common).benchmark().episodes(4, 0)
        return [[item.id for item in episode.demonstrations] for episode in episodes]

    assert shown(common=True) == [["train/0", "train/1", "train/2", "train/3"]] * 3
    different = shown(common=False)
    assert different[0] != different[1] != different[2]
