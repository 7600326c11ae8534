"""push_to_hub with the network replaced by a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard, RepoCard
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoModelForImageTextToText
from transformers.utils import hub as transformers_hub

from flamingo import FlamingoForConditionalGeneration, FlamingoProcessor
from flamingo.model.card import is_generated
from flamingo.model.processor import prepare_tokenizer
from flamingo.testing import save_tiny_language_model, tiny_tokenizer
from tests.model.test_persistence import SMALL, logits, tiny_clip


class Hub:
    """The calls that reach the hub, on folders below ``root`` instead."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def create_repo(self, api: Any, repo_id: str, **options: Any) -> Any:
        self.calls.append(("create_repo", options | {"repo_id": repo_id}))
        name = repo_id if "/" in repo_id else f"me/{repo_id}"
        (self.root / name).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=name)

    def create_branch(self, api: Any, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_branch", options))

    def upload_folder(self, api: Any, *, repo_id: str, folder_path: Path, **options: Any) -> Any:
        self.calls.append(("upload_folder", options))
        ignored = shutil.ignore_patterns(*(options["ignore_patterns"] or ()))
        shutil.copytree(folder_path, self.root / repo_id, ignore=ignored, dirs_exist_ok=True)
        return self.commit(repo_id)

    def create_commit(self, api: Any, repo_id: str, operations: Any, **options: Any) -> Any:
        for operation in operations:
            target = self.root / repo_id / operation.path_in_repo
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(Path(operation.path_or_fileobj).read_bytes())
        return self.commit(repo_id)

    def commit(self, repo_id: str) -> CommitInfo:
        url = f"https://huggingface.co/{repo_id}/commit/1"
        return CommitInfo(url, "", "", oid="1")

    def file_exists(self, api: Any, repo_id: str, filename: str, **_: Any) -> bool:
        return (self.root / repo_id / filename).is_file()

    def hf_hub_download(self, api: Any, repo_id: str, filename: str, **_: Any) -> str:
        return str(self.root / repo_id / filename)

    def load_card(self, cls: Any, name: str | Path, **_: Any) -> ModelCard:
        local = Path(name) if Path(name).is_file() else self.root / name / "README.md"
        if not local.is_file():
            raise EntryNotFoundError(str(name))
        return ModelCard(local.read_text())


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> Hub:
    fake = Hub(tmp_path / "hub")
    for name in ("create_repo", "create_branch", "upload_folder", "create_commit", "file_exists",
                 "hf_hub_download"):  # fmt: skip
        method = getattr(fake, name)
        monkeypatch.setattr(HfApi, name, lambda api, *a, _to=method, **k: _to(api, *a, **k))
    monkeypatch.setattr(RepoCard, "load", classmethod(fake.load_card))
    monkeypatch.setattr(transformers_hub, "_hf_api", None)
    return fake


@pytest.fixture
def model(tmp_path: Path) -> FlamingoForConditionalGeneration:
    torch.manual_seed(1)
    return FlamingoForConditionalGeneration.from_backbones(
        tiny_clip(tmp_path / "clip"), str(save_tiny_language_model(tmp_path / "lm")), **SMALL
    ).eval()


def processor(model: FlamingoForConditionalGeneration) -> FlamingoProcessor:
    assert model.vision_encoder is not None
    tokenizer = prepare_tokenizer(tiny_tokenizer(), 512)
    return FlamingoProcessor(model.vision_encoder.image_processor, tokenizer)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_is_pushed_is_what_saving_writes_and_loads(hub: Hub, model, tmp_path: Path):
    url = model.push_to_hub("me/tiny", include_backbones=True, private=True, tags=["mine"])
    assert url == "https://huggingface.co/me/tiny/commit/1"
    assert hub.calls[0] == (
        "create_repo", {"repo_id": "me/tiny", "private": True, "exist_ok": True}
    )  # fmt: skip
    model.save_pretrained(tmp_path / "saved", include_backbones=True)
    assert files(hub.root / "me/tiny") == files(tmp_path / "saved")
    restored = AutoModelForImageTextToText.from_pretrained(hub.root / "me/tiny")
    assert torch.equal(logits(restored), logits(model))
    card = ModelCard((hub.root / "me/tiny/README.md").read_text())
    assert card.text.count("# me/tiny") == 1 and "mine" in card.data.tags


@pytest.mark.parametrize("processor_first", [True, False])
def test_model_and_processor_end_in_one_repository_under_our_card(
    hub: Hub, model, processor_first: bool
):
    parts = [processor(model), model] if processor_first else [model, processor(model)]
    for part in parts:
        part.push_to_hub("me/tiny")
    folder = hub.root / "me/tiny"
    assert {"model.safetensors", "config.json", "tokenizer.json", "processor_config.json"} <= files(
        folder
    )
    assert is_generated((folder / "README.md").read_text())
    assert "## Architecture" in (folder / "README.md").read_text()
    assert isinstance(FlamingoProcessor.from_pretrained(folder), FlamingoProcessor)


def test_an_edited_card_on_the_hub_is_left_alone(hub: Hub, model):
    model.push_to_hub("me/tiny")
    card = hub.root / "me/tiny/README.md"
    edited = card.read_text().replace("Not recorded.", "My photographs.")
    card.write_text(edited)
    model.push_to_hub("me/tiny", commit_message="again")
    assert card.read_text() == edited
    assert hub.calls[-1][1]["commit_message"] == "again"


def test_save_pretrained_pushes_when_told(hub: Hub, model, tmp_path: Path):
    model.save_pretrained(tmp_path / "tiny", push_to_hub=True)  # named like the folder
    assert files(hub.root / "me/tiny") == files(tmp_path / "tiny")
    model.save_pretrained(
        tmp_path / "tiny", push_to_hub=True, repo_id="us/other", revision="v2", create_pr=True
    )
    assert files(hub.root / "us/other") == files(tmp_path / "tiny")
    assert ("create_branch", {"branch": "v2", "exist_ok": True}) in hub.calls
    assert hub.calls[-1][1]["revision"] == "v2" and hub.calls[-1][1]["create_pr"]


def test_pushing_options_without_pushing_are_refused(hub: Hub, model, tmp_path: Path):
    with pytest.raises(ValueError, match=r"expected push_to_hub=True with \['private'\]"):
        model.save_pretrained(tmp_path / "tiny", private=True)
    assert hub.calls == [] and not (tmp_path / "tiny").exists()


def test_only_the_main_process_writes(hub: Hub, model, tmp_path: Path):
    """As transformers' Trainer calls it."""
    model.save_pretrained(tmp_path / "tiny", is_main_process=False, state_dict=None)
    assert not (tmp_path / "tiny").exists()
    model.save_pretrained(tmp_path / "tiny", is_main_process=True, state_dict=None)
    assert (tmp_path / "tiny" / "model.safetensors").is_file()


def test_the_language_model_is_split_into_files_as_told_and_loads(model, tmp_path: Path):
    model.save_pretrained(tmp_path / "saved", include_backbones=True, max_shard_size="50KB")
    shards = list((tmp_path / "saved" / "language_model").glob("model-*.safetensors"))
    assert len(shards) > 1
    restored = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert torch.equal(logits(restored), logits(model))
