from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from flamingo.choices import Mixing
from flamingo.config import BindingSourceConfig, DataConfig, EasyVQASourceConfig, SourceConfig
from flamingo.data.collate import collate
from flamingo.data.mixture import UNSEEN, Mixture, build_sources
from flamingo.data.sources.documents import open_streams
from flamingo.evaluation.benchmarks.training import training_questions
from flamingo.source_config import InterleavedSourceConfig, ShardsConfig
from flamingo.testing import SyntheticSource, synthetic_images
from flamingo.types import InterleavedSequence, Media, TokenizedSequence
from tests.toy_stream import write_shards

A, B, C = (Media((image,)) for image in synthetic_images(3))


def _mixture(
    tokenizer: PreTrainedTokenizerFast, max_tokens: int = 200, **options: Mixing
) -> Mixture:
    sources = [SyntheticSource(seed=0, name="a"), SyntheticSource(seed=1, name="b")]
    configs = [SourceConfig(sequences=3), SourceConfig(sequences=2, loss_weight=0.5)]
    return Mixture(sources, configs, tokenizer, max_tokens, **options)


def _numbers(media: list[Media] | tuple[Media, ...]) -> Tensor:
    """Features (image, frame, 2 patches, 1) that hold each image's number, 1 for the first."""
    return torch.tensor([[[[int(f.key[-1]) + 1.0]] * 2 for f in m.frames] for m in media])


# ---------------------------------------------------------------------------- mixture


def test_a_step_holds_the_next_sequences_of_every_source(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    mixture = _mixture(tokenizer)
    rows = mixture.step(4)
    assert [source for source, _ in rows] == [0, 0, 0, 1, 1]
    media = [row.media for _, row in rows]
    first, second = mixture.sources
    assert media[:3] == [first.sequence(index).media for index in (12, 13, 14)]
    assert media[3:] == [second.sequence(index).media for index in (8, 9)]
    assert mixture.names == ("a", "b") and mixture.loss_weights == (1.0, 0.5)


def test_ranks_share_a_step_without_gaps_or_doubles(tokenizer: PreTrainedTokenizerFast) -> None:
    mixture = _mixture(tokenizer)
    whole = mixture.step(7)
    for world in (2, 3, 5):
        parts = [mixture.step(7, rank, world) for rank in range(world)]
        assert all(parts[rank] == whole[rank::world] for rank in range(world))
    with pytest.raises(ValueError, match="got 5 for 6 processes"):
        mixture.step(7, 0, 6)
    validation = [mixture.step(UNSEEN, rank, 6) for rank in range(6)]
    assert [len(part) for part in validation] == [1, 1, 1, 1, 1, 0]


def test_any_step_can_be_first(tokenizer: PreTrainedTokenizerFast) -> None:
    mixture = _mixture(tokenizer)
    straight = [mixture.step(index) for index in range(6)]
    assert [_mixture(tokenizer).step(index) for index in (5, 4, 3)] == straight[:2:-1]
    assert mixture.step(2**31) not in straight


def test_in_turn_as_many_steps_as_sources_hold_what_one_step_does_otherwise(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    mixture = _mixture(tokenizer)
    in_turn = _mixture(tokenizer, mixing=Mixing.round_robin)
    for index in (0, 3):
        turns = [in_turn.step(2 * index), in_turn.step(2 * index + 1)]
        assert [{source for source, _ in turn} for turn in turns] == [{0}, {1}]
        assert turns[0] + turns[1] == mixture.step(index)
    assert in_turn.step(UNSEEN) == mixture.step(UNSEEN)
    assert in_turn.step(4, 1, 2) == in_turn.step(4)[1::2]


def test_a_sequence_over_the_limit_is_an_error(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="at most 5 tokens"):
        _mixture(tokenizer, max_tokens=5).step(0)
    with pytest.raises(ValueError, match="at least one source"):
        Mixture([], [], tokenizer, 5)


def test_sources_follow_the_configuration(
    tokenizer: PreTrainedTokenizerFast, easy_vqa: Path, twemoji: Path
) -> None:
    config = DataConfig(
        easy_vqa=EasyVQASourceConfig(pairs=2, sequences=2),
        binding=BindingSourceConfig(held_out=2, max_ways=3, views=2, sequences=1),
    )
    sources = build_sources(config, 0, tokenizer, lambda: easy_vqa, lambda: twemoji, {})
    mixture = Mixture(sources, config.sources, tokenizer, 512)
    assert mixture.names == ("easy_vqa", "binding")
    assert len(mixture.images()) == 5 + 6 * 2
    used = {
        f.key for s in range(20) for _, row in mixture.step(s) for m in row.media for f in m.frames
    }
    assert used <= {image.key for image in mixture.images()}
    assert [source for source, _ in mixture.step(0)] == [0, 0, 1]


def test_the_seed_reaches_every_source(
    tokenizer: PreTrainedTokenizerFast, easy_vqa: Path, twemoji: Path, tmp_path: Path
) -> None:
    shards = write_shards(tmp_path / "pages", [20, 20])
    config = DataConfig(
        easy_vqa=EasyVQASourceConfig(pairs=2),
        binding=BindingSourceConfig(held_out=2, max_ways=3, views=2),
        interleaved=InterleavedSourceConfig(shards=ShardsConfig(files=shards), lanes=1),
        cache_features=False,
    )
    documents = open_streams(config, training_questions)

    def drawn(seed: int) -> dict[str, list[InterleavedSequence]]:
        sources = build_sources(
            config, seed, tokenizer, lambda: easy_vqa, lambda: twemoji, documents
        )
        return {source.name: [source.sequence(n) for n in range(8)] for source in sources}

    first, other = drawn(0), drawn(1)
    assert first == drawn(0) and first.keys() == {"easy_vqa", "binding", "interleaved"}
    assert all(first[name] != other[name] for name in first)


# ---------------------------------------------------------------------------- collate


def test_rows_are_padded_on_the_right_to_train() -> None:
    rows = [
        TokenizedSequence((7, 5, 6), (-100, -100, 6), (A,)),
        TokenizedSequence((7, 8, 7, 9, 4), (-100, 8, -100, 9, 4), (B, C)),
    ]
    batch = collate(rows, [1, 0], pad_id=0, load_media=_numbers)
    assert batch.input_ids.tolist() == [[7, 5, 6, 0, 0], [7, 8, 7, 9, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch.labels.tolist() == [[-100, -100, 6, -100, -100], [-100, 8, -100, 9, 4]]
    assert batch.source.tolist() == [[1] * 5, [0] * 5]
    assert batch.documents is None
    assert batch.pixel_values is None and batch.vision_features is not None
    assert batch.vision_features.shape == (2, 2, 1, 2, 1)
    assert batch.vision_features[:, :, 0, :, 0].tolist() == [[[1, 1], [0, 0]], [[2, 2], [3, 3]]]


def test_rows_are_padded_on_the_left_to_generate() -> None:
    rows = [TokenizedSequence((5,), (-100,), ()), TokenizedSequence((7, 6), (-100, -100), (A,))]
    batch = collate(rows, None, pad_id=3, load_media=_numbers, side="left")
    assert batch.input_ids.tolist() == [[3, 5], [7, 6]]
    assert batch.attention_mask.tolist() == [[0, 1], [1, 1]]
    assert batch.vision_features is not None
    assert batch.vision_features.flatten().tolist() == [0, 0, 1, 1]


def test_pixels_and_text_alone_are_told_apart() -> None:
    row = TokenizedSequence((7,), (-100,), (A,))
    batch = collate([row], None, 0, lambda media: torch.ones(len(media), 1, 3, 2, 2))
    assert batch.vision_features is None and batch.pixel_values is not None
    assert batch.pixel_values.shape == (1, 1, 1, 3, 2, 2)
    text = collate([TokenizedSequence((5,), (5,), ())], None, 0, _numbers)
    assert text.vision_features is None and text.pixel_values is None


def test_clips_of_different_length_and_wrong_counts_are_errors() -> None:
    clip = Media((*A.frames, *B.frames))
    rows = [TokenizedSequence((7, 7), (-100, -100), (A, clip))]
    with pytest.raises(ValueError, match=r"same number of frames .* got \[1, 2\]"):
        collate(rows, None, 0, _numbers)
    with pytest.raises(ValueError, match="expected at least one sequence"):
        collate([], None, 0, _numbers)
    with pytest.raises(ValueError, match="source: expected 1 entries"):
        collate(rows, [0, 1], 0, _numbers)
