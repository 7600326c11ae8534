"""Answers to another harness's requests, against the model's own generate and forward passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flamingo.choices import Protocol
from flamingo.evaluation.latents import MediaLatents
from flamingo.evaluation.scoring import Reader
from flamingo.evaluation.tasks import Kind, first, task
from flamingo.interop.harness import TaskDocuments, Turn
from flamingo.interop.options import Options
from flamingo.interop.respondent import Asked, Respondent, Settings
from tests.evaluation import tiny

from .harness_task import FakeTask

GREEDY = Options.of({"max_new_tokens": 4}, 9)


@pytest.fixture(scope="module")
def reader() -> Reader:
    return tiny.reader()


def respondent(reader: Reader, folder: Path, **settings) -> Respondent:
    own = task(Kind.vqa, Protocol.native)
    return Respondent(reader, Settings(task=own, predictions=folder, **settings))


def ask(own: Respondent, indices=range(6), **more) -> list[Asked]:
    documents = TaskDocuments(FakeTask(), first)
    queries = [documents.query("test", n, f"what shape {n}?", alone=False) for n in indices]
    return [own.ask("shapes", query, documents, **more) for query in queries]


def texts(own: Respondent, asked: list[Asked], options: list[Options]) -> list[str]:
    found = dict(own.answers(asked, options))
    return [found[place] for place in range(len(asked))]


@pytest.mark.parametrize("shots", [0, 2])
def test_answers_are_those_of_generate_on_the_written_prompts(reader, tmp_path, shots) -> None:
    own = respondent(reader, tmp_path, shots=shots, batch_size=4)
    said = texts(own, ask(own), [GREEDY] * 6)
    lines = [json.loads(line) for line in (tmp_path / "shapes.jsonl").read_text().splitlines()]
    assert [line["query"] for line in lines] == [f"test/{n}" for n in range(6)]
    data = FakeTask().dataset
    for line, answer in zip(lines, said, strict=True):
        names = [*line["demonstrations"], line["query"]]
        images = [data[name.split("/")[0]][int(name.split("/")[1])]["image"] for name in names]
        encoder = reader.model.vision_encoder
        assert encoder is not None and len(images) == shots + 1
        pixels = torch.stack([encoder.transform(image) for image in images])[None, :, None]
        features = encoder(pixels[0, :, 0]).half().float()[None, :, None]
        ids = reader.tokenizer(line["prompt"], return_tensors="pt")["input_ids"]
        new = reader.model.generate(ids, vision_features=features, max_new_tokens=4)
        raw = reader.tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True)
        assert line["answer"] == answer == raw.strip()
        assert line["prompt"].count("<|endofchunk|>") == line["shots"] == shots


def test_answers_come_in_order_and_depend_on_no_batch_size_nor_what_else_is_asked(
    reader, tmp_path
) -> None:
    stops = [GREEDY, Options.of({"max_new_tokens": 2}, 9)]
    options = [stops[n % 2] for n in range(6)]
    sets = []
    for batch_size in (1, 5):
        own = respondent(reader, tmp_path / str(batch_size), shots=1, batch_size=batch_size)
        sets.append(texts(own, ask(own), options))
    alone = respondent(reader, tmp_path / "alone", shots=1)
    single = [texts(alone, ask(alone, [n]), [options[n]])[0] for n in range(6)]
    assert sets[0] == sets[1] == single
    assert len(set(single)) > 1


def test_each_image_is_encoded_once(reader, tmp_path, monkeypatch) -> None:
    encoded = []
    original = type(reader.model).encode_media
    monkeypatch.setattr(
        type(reader.model),
        "encode_media",
        lambda self, **media: encoded.append(1) or original(self, **media),
    )
    fresh = tiny.reader()
    own = respondent(fresh, tmp_path, shots=4)
    shown = {medium for asked in ask(own) for medium in asked.tokens.media}
    ask(own)
    assert len(encoded) == len(shown) < 6 * 5


def test_sampled_answers_depend_on_seed_request_and_draw_alone(reader, tmp_path) -> None:
    sampled = Options.of({"max_new_tokens": 8, "temperature": 2.0}, 9)
    own = respondent(reader, tmp_path)
    torch.manual_seed(1)
    together = texts(own, ask(own), [sampled] * 6)
    state = torch.get_rng_state()
    assert texts(own, ask(own, [3]), [sampled]) == together[3:4]
    assert torch.equal(torch.get_rng_state(), state)
    assert texts(own, ask(own, [3], draw=1), [sampled]) != together[3:4]
    other = respondent(reader, tmp_path, seed=1)
    assert texts(other, ask(other), [sampled] * 6) != together


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-5}], ids=str)
def test_sampling_among_the_likeliest_alone_is_greedy(reader, tmp_path, narrow) -> None:
    own = respondent(reader, tmp_path)
    greedy = texts(own, ask(own), [Options.of({"max_new_tokens": 8}, 9)] * 6)
    wide = {"max_new_tokens": 8, "temperature": 2.0}
    assert texts(own, ask(own), [Options.of(wide | narrow, 9)] * 6) == greedy
    assert texts(own, ask(own), [Options.of(wide, 9)] * 6) != greedy


def test_likelihoods_are_those_of_forward_passes_and_greedy_what_is_generated(
    reader, tmp_path
) -> None:
    own = respondent(reader, tmp_path, shots=1, batch_size=2)
    asked = ask(own, [0, 1])
    raw = texts(own, asked, [Options.of({"max_new_tokens": 1}, 9)] * 2)[0]
    words = [" red circle", " no", " " + raw, " red circle"]
    twice = [asked[0], asked[0], asked[0], asked[1]]
    found = {place: pair for place, *pair in own.likelihoods(twice, words)}
    for place, (total, greedy) in found.items():
        ids = reader.tokenizer(words[place])["input_ids"]
        expected, prefix = 0.0, []
        following = []
        for token in ids:
            logits = tiny.next_logits(reader, twice[place].tokens, prefix)
            expected += logits.log_softmax(0)[token].item()
            logits[reader.model.config.image_token_id] = -torch.inf
            following.append(int(logits.argmax()) == token)
            prefix.append(token)
        assert total == pytest.approx(expected, abs=1e-3)
        assert greedy == all(following)
    lines = [json.loads(line) for line in (tmp_path / "shapes.jsonl").read_text().splitlines()]
    assert [line["candidates"] for line in lines[-4:]] == [[word] for word in words]


def test_text_alone_needs_no_image_and_padding_leaves_no_line(reader, tmp_path) -> None:
    own = respondent(reader, tmp_path)
    asked = [
        own.ask("sums", Turn("test/0", (), "what is it?"), None),
        own.ask("sums", Turn("test/1", (), "what is that?"), None, record=False),
    ]
    texts(own, asked, [GREEDY] * 2)
    (line,) = (tmp_path / "sums.jsonl").read_text().splitlines()
    assert json.loads(line)["prompt"] == "what is it?"


def test_what_does_not_fit_names_task_and_option(reader, tmp_path) -> None:
    own = respondent(reader, tmp_path, shots=2)
    with pytest.raises(ValueError, match=r"shots: .*test/0 of sums"):
        own.ask("sums", Turn("test/0", (), "what is it?"), None)
    with pytest.raises(ValueError, match=r"test/0 of task shapes with 2 shots: .*at most 20"):
        ask(respondent(reader, tmp_path, shots=2, max_tokens=20))
    for settings in ({"shots": -1}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            respondent(reader, tmp_path, **settings)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_what_goes_beyond_learned_positions_is_refused_before_the_first_answer(
    tmp_path, family: str
) -> None:
    model = tiny.model(family, max_position_embeddings=32)
    short = Reader(model, tiny.tokenizer(), MediaLatents(model, tiny.load_media()), torch.float32)
    own = respondent(short, tmp_path, shots=2)
    asked = ask(own, [0, 1])
    left = 32 - max(len(one.tokens.input_ids) for one in asked)
    fits, long = (Options.of({"max_new_tokens": left + more}, 9) for more in (0, 1))
    assert len(texts(own, asked, [fits, fits])) == 2
    lines = (tmp_path / "shapes.jsonl").read_text()
    expected = "of task shapes: prompt: expected at most the 32 positions"
    with pytest.raises(ValueError, match=expected):
        texts(own, asked, [fits, long])
    with pytest.raises(ValueError, match=expected):
        list(own.likelihoods(asked, [" red", " red" * (left + 1)]))
    assert (tmp_path / "shapes.jsonl").read_text() == lines
