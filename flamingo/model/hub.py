"""Uploading a saved model folder to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, ModelCard

from flamingo.model.card import CARD, is_generated, with_tags

UPLOAD_OPTIONS = (
    *("private", "token", "revision", "create_pr", "commit_message", "commit_description", "tags"),
)
"""What :func:`upload` takes besides the folder and its repository."""


def check_login(repo_id: str, token: str | bool | None = None) -> None:
    """Raise ``ValueError`` unless the hub answers and knows who uploads to ``repo_id``."""
    try:
        HfApi(token=token).whoami()
    except Exception as error:  # of the network, the client, or the hub: each has its own classes
        raise ValueError(
            f"push_to: expected the Hugging Face hub to be reached, and a login (hf auth login), "
            f"to upload {repo_id}, got {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """Create ``repo_id`` if there is none, and upload all of ``folder`` in one commit.

    A card on the hub that somebody edited is not replaced. ``tags`` are added to a generated card.
    Returns the commit's address (with ``create_pr`` that of the pull request).
    """
    api = HfApi(token=token)
    repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo, branch=revision, exist_ok=True)
    card = folder / CARD
    if tags and card.is_file() and is_generated(card.read_text(encoding="utf-8")):
        tagged = with_tags(ModelCard.load(card), tags)
        card.write_text(str(tagged), encoding="utf-8")
    commit = api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message or "Upload Flamingo",
        commit_description=commit_description,
        ignore_patterns=[CARD] if _was_edited(api, repo, revision) else None,
    )
    return commit.pr_url or commit.commit_url


def _was_edited(api: HfApi, repo: str, revision: str | None) -> bool:
    """Whether the repository has a card that is not as we generated it."""
    if not api.file_exists(repo, CARD, revision=revision):
        return False
    there = api.hf_hub_download(repo, CARD, revision=revision)
    return not is_generated(Path(there).read_text(encoding="utf-8"))
