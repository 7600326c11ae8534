"""Retrieval features from a run's backbones: by image, by question and mixed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from flamingo.choices import Similarity
from flamingo.data.features import EncodingLoader
from flamingo.evaluation.prompts import Item
from flamingo.evaluation.retriever import ImageSource, Retriever, TextSource
from flamingo.testing import (
    synthetic_images,
    tiny_language_model,
    tiny_tokenizer,
    tiny_vision_encoder,
)
from flamingo.types import Media
from tests.tiny_world import save_classes

from . import tiny
from .test_dataset_benchmarks import built, evaluation

IMAGES = synthetic_images(14)
QUESTIONS = ["what colour is it?", "is it red?", "what shape is it?", "is it a circle?"]


def items(places: range) -> list[Item]:
    return [Item(str(i), Media((IMAGES[i],)), QUESTIONS[i % 4], "x") for i in places]


POOL, QUERIES = items(range(10)), items(range(10, 14))


def retriever(folder: Path, similarity: Similarity, loads: list[str], weight: float = 0.25):
    encoder, language = tiny_vision_encoder(), tiny_language_model(layers=5)

    def load_features(images):
        loads.append("vision")
        return EncodingLoader(encoder)

    def load_language():
        loads.append("language")
        return language

    images = ImageSource(encoder.fingerprint, load_features)
    texts = TextSource("tiny", tiny_tokenizer(), load_language)
    return Retriever(similarity, weight, folder, images, texts)


def image_cosines() -> torch.Tensor:
    """From the encoder itself: (query, item)."""
    encoder = tiny_vision_encoder()
    pixels = torch.stack([encoder.transform(image.open()) for image in IMAGES])
    vectors = encoder(pixels).detach().mean(dim=1)
    return cosine_similarity(vectors[10:, None], vectors[None, :10], dim=-1)


def question_cosines() -> torch.Tensor:
    """From the language model itself, one question after the other: (query, item)."""
    model, tokenizer = tiny_language_model(layers=5), tiny_tokenizer()

    def mean(text: str) -> torch.Tensor:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states
        return states[2][0].mean(dim=0)  # a quarter of five layers is the second

    vectors = torch.stack([mean(question) for question in QUESTIONS])
    vectors = (vectors - vectors.mean(dim=0)) / vectors.std(dim=0)
    asked, offered = ([int(i.id) % 4 for i in own] for own in (QUERIES, POOL))
    return cosine_similarity(vectors[asked][:, None], vectors[offered][None], dim=-1)


def found(similar) -> torch.Tensor:
    rows = [similar.index.similarities(vector, range(10)) for vector in similar.vectors]
    return torch.stack(rows)


@pytest.mark.parametrize("similarity", Similarity)
def test_similarities_are_those_of_the_backbones(similarity: Similarity, tmp_path: Path) -> None:
    loads: list[str] = []
    similar = retriever(tmp_path, similarity, loads)(QUERIES, POOL)
    image, question = image_cosines(), question_cosines()
    expected = {
        Similarity.image: image,
        Similarity.question: question,
        Similarity.mixed: 0.25 * question + 0.75 * image,
    }[similarity]
    torch.testing.assert_close(found(similar), expected, atol=3e-3, rtol=0)
    assert ("language" in loads) == (similarity is not Similarity.image)
    assert ("vision" in loads) == (similarity is not Similarity.question)
    assert loads.count("language") <= 1, "queries and pool need the model once"


def test_what_is_on_disk_loads_nothing(tmp_path: Path) -> None:
    first = retriever(tmp_path, Similarity.mixed, [])(QUERIES, POOL)
    loads: list[str] = []
    again = retriever(tmp_path, Similarity.mixed, loads)(QUERIES, POOL)
    assert loads == []
    torch.testing.assert_close(found(again), found(first), atol=0, rtol=0)
    few = retriever(tmp_path, Similarity.mixed, loads)(QUERIES[:1], POOL)
    assert loads == ["language", "vision"], "other queries, the same pool"
    torch.testing.assert_close(found(few), found(first)[:1], atol=0, rtol=0)


def test_another_image_in_the_same_file_is_another_vector(tmp_path: Path) -> None:
    """Keys of images are those of the benchmark and may come again with other data."""
    save_classes(tmp_path / "classes", views=1)
    config = evaluation(
        "classification",
        {"test": str(tmp_path / "classes"), "train": str(tmp_path / "classes")},
    )
    (benchmark,) = built(config)
    loads: list[str] = []
    find = retriever(tmp_path, Similarity.image, loads)
    before = find(benchmark.pool[:3], benchmark.pool)
    first, second = (tmp_path / "classes" / item.answer / "0.png" for item in benchmark.pool[:2])
    first.write_bytes(second.read_bytes())
    after = find(benchmark.pool[:3], benchmark.pool)
    assert len(loads) == 4
    assert not torch.equal(before.vectors[0], after.vectors[0])
    torch.testing.assert_close(after.vectors[0], after.vectors[1])


@pytest.mark.parametrize("questions", [["", "a circle?"], ["the same?", "the same?"]])
def test_questions_that_tell_nothing_apart_are_refused(tmp_path: Path, questions) -> None:
    pool = [Item(q, POOL[0].media, q, "x") for q in questions]
    with pytest.raises(ValueError, match="similarity: expected image where .* got question"):
        retriever(tmp_path, Similarity.question, [])(QUERIES, pool)


# ---------------------------------------------------------------------------- from a config


def test_rices_by_configuration_shows_the_nearest_image_last(tmp_path: Path) -> None:
    folder = str(save_classes(tmp_path / "classes", views=3))
    demonstrations = {"strategy": "rices", "exclusion": "same_content"}
    config = evaluation(
        "classification", {"test": folder, "train": folder}, demonstrations=demonstrations
    )
    (benchmark,) = built(config, retriever(tmp_path, Similarity.image, []))
    pool = {item.id: item for item in benchmark.pool}
    loader = tiny.load_media()
    vectors = {name: loader([item.media])[0, 0].float().mean(0) for name, item in pool.items()}
    for episode in benchmark.episodes(2, 0):
        name = episode.query.id.removeprefix("test/")
        own = vectors[f"train/{name}"]
        nearest = sorted(
            (name for name in vectors if not torch.equal(vectors[name], own)),
            key=lambda name: cosine_similarity(vectors[name], own, dim=0),
        )
        assert [d.id for d in episode.demonstrations] == nearest[-2:]
        assert f"train/{name}" not in [d.id for d in episode.demonstrations]


def test_rices_without_features_is_an_error_that_says_so(tmp_path: Path) -> None:
    folder = str(save_classes(tmp_path / "classes", views=2))
    demonstrations = {"strategy": "rices"}
    config = evaluation(
        "classification", {"test": folder, "train": folder}, demonstrations=demonstrations
    )
    (benchmark,) = built(config)
    with pytest.raises(ValueError, match="no retrieval features for strategy=rices"):
        benchmark.unfit(1)


def by_faiss(tmp_path: Path, factory: str | None, loaded: list[str]):
    folder = str(save_classes(tmp_path / "classes", views=3))
    demonstrations = {"strategy": "rices", "faiss": factory}
    config = evaluation(
        "classification", {"test": folder, "train": folder}, demonstrations=demonstrations
    )
    (benchmark,) = built(config, retriever(tmp_path, Similarity.image, loaded))
    return benchmark


def test_faiss_without_the_extra_is_refused_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    loaded: list[str] = []
    with pytest.raises(ValueError, match=r"expected the package faiss \(pip install"):
        by_faiss(tmp_path, "Flat", loaded).unfit(1)
    assert loaded == []


def test_faiss_by_configuration_plans_as_torch_does(tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="needs faiss: make install")
    exact, torch_alone = (by_faiss(tmp_path / str(f), f, []) for f in ("Flat", None))
    assert [p.demonstrations for p in exact.plans(0)] == [
        p.demonstrations for p in torch_alone.plans(0)
    ]
