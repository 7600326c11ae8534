"""The model card: what it says, its metadata, and whom it never overwrites."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard

from flamingo import FlamingoForConditionalGeneration, FlamingoProcessor
from flamingo.choices import ResamplerKind
from flamingo.config import ResamplerConfig
from flamingo.model.card import Results, is_generated, model_card, with_tags, write_card
from flamingo.model.processor import prepare_tokenizer
from flamingo.testing import (
    draw,
    save_tiny_language_model,
    tiny_language_model,
    tiny_tokenizer,
    tiny_vision_encoder,
)
from tests.model.test_persistence import SMALL, tiny_clip

RESULTS = Results(
    "| benchmark | 4 shots |\n|---|---|\n| easy-VQA | 99.2 |",
    (
        EvalResult(
            task_type="visual-question-answering", dataset_type="easy_vqa",
            dataset_name="easy-VQA", metric_type="accuracy", metric_value=99.2,
            metric_name="accuracy, 4 shots",
        ),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> FlamingoForConditionalGeneration:
    torch.manual_seed(0)
    return FlamingoForConditionalGeneration.from_backbones(
        tiny_vision_encoder(), tiny_language_model(), **SMALL
    )


def test_the_card_says_what_the_model_is_made_of(model):
    text = str(model_card(model, name="me/tiny"))
    for part in (
        "# me/tiny",
        "LlamaForCausalLM, built in memory, fingerprint `" + model.config.language_fingerprint[:16],
        "`tiny`, fingerprint `" + model.config.vision_fingerprint[:16],
        "2 latents, depth 1, 2 heads of 8, feed-forward x 4 (gelu)",
        "before the language model's layers 1, 3: 2 heads of 8",
        "text sees immediate media; gate init 0.5",
        "Not recorded.",
        "Not evaluated yet.",
    ):
        assert part in text
    assert "every" not in text  # said by the layers


def test_parameters_are_counted_by_group(model):
    text = str(model_card(model, name="tiny"))
    count = sum(p.numel() for p in model.trainable_parameters().values())
    frozen = sum(p.numel() for p in model.parameters()) - count
    assert f"| together |  | {count:,} | trained |" in text
    assert f"| together |  | {frozen:,} | frozen |" in text
    own = sum(p.numel() for p in model.resampler.parameters())
    assert re.search(rf"\| resampler \| .* \| {own:,} \| trained \|", text)


def test_every_row_of_the_table_has_four_cells_and_no_resampler_is_called_none():
    options = SMALL["cross_attention"]
    model = FlamingoForConditionalGeneration.from_backbones(
        None,
        tiny_language_model(),
        resampler=ResamplerConfig(kind=ResamplerKind.identity),
        cross_attention=replace(options, ff_width=44),
        vision_dim=24,
    )
    text = str(model_card(model, name="tiny"))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 8 and all(row.count("|") == 5 for row in rows)
    assert "| resampler | none: " in text and "perceiver" not in text.lower()
    assert "feed-forward of width 44 (" in text


def test_results_stand_in_the_text_and_in_the_hub_s_index(model):
    card = model_card(model, name="me/tiny", results=RESULTS, data="Some.", license="mit")
    again = ModelCard(str(card))
    assert again.data.to_dict()["model-index"] == [
        {
            "name": "me/tiny",
            "results": [
                {
                    "task": {"type": "visual-question-answering"},
                    "dataset": {"type": "easy_vqa", "name": "easy-VQA"},
                    "metrics": [{"type": "accuracy", "value": 99.2, "name": "accuracy, 4 shots"}],
                }
            ],
        }
    ]
    assert again.data.license == "mit"
    assert again.data.pipeline_tag == "image-text-to-text"
    assert again.data.tags == ["flamingo", "few-shot", "visual-question-answering"]
    assert "| easy-VQA | 99.2 |" in again.text and "Some." in again.text
    assert "model_name" not in ModelCard(str(model_card(model, name="tiny"))).data.to_dict()


def test_backbones_of_the_hub_are_named_as_base_models_and_local_paths_are_not(tmp_path: Path):
    model = FlamingoForConditionalGeneration.from_backbones(
        tiny_clip(tmp_path / "clip"), str(save_tiny_language_model(tmp_path / "lm")), **SMALL
    )
    text = str(model_card(model, name="tiny"))
    assert str(tmp_path) not in text and "`lm` (a local copy)" in text
    model.config.language["name"] = "HuggingFaceTB/SmolLM2-135M"
    model.config.language["revision"] = "abc123"
    card = model_card(model, name="tiny")
    assert card.data.base_model == ["HuggingFaceTB/SmolLM2-135M"]
    assert "`HuggingFaceTB/SmolLM2-135M`, revision `abc123`" in str(card)


def test_saving_writes_the_card_and_never_over_an_edited_one(model, tmp_path: Path):
    readme = tmp_path / "README.md"
    model.save_pretrained(tmp_path)
    first = readme.read_text()
    assert is_generated(first) and f"# {tmp_path.name}" in first

    write_card(model_card(model, name="new name"), tmp_path)  # ours: replaced
    assert "# new name" in readme.read_text()

    for edited in (
        first.replace("Not recorded.", "My own data."),
        first.replace("tags:", "license: mit\ntags:"),
        "Something else entirely.",
    ):
        readme.write_text(edited)
        model.save_pretrained(tmp_path)
        assert readme.read_text() == edited
        assert not is_generated(edited)


def test_a_card_that_the_hub_s_tools_read_and_wrote_again_is_still_ours(model, tmp_path: Path):
    card = model_card(model, name="me/tiny", results=RESULTS)
    card.save(tmp_path / "README.md")
    ModelCard.load(tmp_path / "README.md").save(tmp_path / "again.md")
    assert is_generated((tmp_path / "again.md").read_text())
    assert is_generated(str(card).replace("\n", "\r\n"))
    tagged = with_tags(card, ["mine", "flamingo"])
    assert is_generated(str(tagged)) and tagged.data.tags[-1] == "mine"
    assert tagged.data.tags.count("flamingo") == 1


def code(folder: Path) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return block


def test_the_code_of_the_card_runs(tmp_path: Path, monkeypatch, capsys):
    model = FlamingoForConditionalGeneration.from_backbones(
        tiny_clip(tmp_path / "clip"), str(save_tiny_language_model(tmp_path / "lm")), **SMALL
    )
    processor = FlamingoProcessor(
        model.vision_encoder.image_processor, prepare_tokenizer(tiny_tokenizer(), 512)
    )
    draw("red", "circle", 0).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    for complete in (False, True):
        model.save_pretrained("mine", include_backbones=complete)
        processor.save_pretrained("mine")
        exec(code(tmp_path / "mine"), {})
        assert capsys.readouterr().out.strip()
        assert ("nothing else is needed" in (tmp_path / "mine/README.md").read_text()) == complete


def test_the_code_runs_for_a_model_of_features_on_a_language_model_in_memory(
    tmp_path: Path, monkeypatch, capsys
):
    language_model = tiny_language_model()
    model = FlamingoForConditionalGeneration.from_backbones(
        None, language_model, vision_dim=24, **SMALL
    )
    tokenizer = prepare_tokenizer(tiny_tokenizer(), 512)
    processor = FlamingoProcessor(tiny_vision_encoder().image_processor, tokenizer)
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("mine")
    processor.save_pretrained("mine")
    exec(code(tmp_path / "mine"), {"language_model": language_model})
    assert capsys.readouterr().out.strip()
