"""Saving a model and restoring it, in this process or from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flamingo.backbones.vision import VisionEncoder
from flamingo.files import UNFINISHED
from flamingo.model import hub, persistence
from flamingo.model.configuration import FlamingoConfig

if TYPE_CHECKING:
    from flamingo.model.flamingo import FlamingoForConditionalGeneration


class FlamingoSaving:
    """``save_pretrained``, ``push_to_hub`` and ``from_pretrained``.

    Stands before transformers' ``PreTrainedModel`` among the model's bases.
    """

    def save_pretrained(
        self: FlamingoForConditionalGeneration,  # type: ignore[misc]
        save_directory: str | Path,
        *,
        include_backbones: bool = False,
        max_shard_size: int | str = "50GB",
        is_main_process: bool = True,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        safe_serialization: bool = True,
        **push: Any,
    ) -> None:
        """Write what trains, and the names and fingerprints of the backbones, as safetensors.

        A model card, ``README.md``, is written beside them; one that somebody edited is left alone
        (:mod:`flamingo.model.card`). ``include_backbones=True`` writes the frozen backbones too:
        the folder then needs nothing else. ``from_pretrained`` reads either. ``max_shard_size`` is
        for the language model; what trains is one file. With ``push_to_hub`` the folder is
        uploaded to ``repo_id`` (default: the folder's name); ``push`` as in :meth:`push_to_hub`.
        Processes that are not the main one write nothing. ``state_dict``: what trains is taken from
        it, by the names of :meth:`state_dict` (a sharded model's, gathered); all else in it is not
        looked at.

        Raises:
            ValueError: for options that are none of these, and for a ``state_dict`` that lacks
                what trains.
        """
        folder = Path(save_directory)
        push = {name: value for name, value in push.items() if value is not None}
        unknown = sorted(set(push) - set(hub.UPLOAD_OPTIONS))
        if unknown or not safe_serialization:
            got = unknown or "safe_serialization=False"
            raise ValueError(f"save_pretrained: expected safetensors and known options, got {got}")
        if push and not push_to_hub:
            raise ValueError(f"save_pretrained: expected push_to_hub=True with {sorted(push)}")
        if not is_main_process:
            return
        name = repo_id or folder.resolve().name.removeprefix(UNFINISHED)
        persistence.save(
            self,
            folder,
            include_backbones=include_backbones,
            max_shard_size=max_shard_size,
            name=name,
            state=state_dict,
        )
        if push_to_hub:
            hub.upload(folder, name, **push)

    def push_to_hub(
        self: FlamingoForConditionalGeneration,  # type: ignore[misc]
        repo_id: str,
        *,
        include_backbones: bool = False,
        max_shard_size: int | str = "50GB",
        **push: Any,
    ) -> str:
        """Save into ``repo_id`` on the Hugging Face hub; returns the commit's address.

        ``push`` goes to :func:`flamingo.model.hub.upload`: ``private``, ``token``, ``revision``,
        ``create_pr``, ``commit_message``, ``commit_description``, ``tags``. A card on the hub that
        somebody edited stays as it is. The processor has a ``push_to_hub`` of its own.
        """
        with TemporaryDirectory() as folder:
            persistence.save(
                self,
                Path(folder),
                include_backbones=include_backbones,
                max_shard_size=max_shard_size,
                name=repo_id,
            )
            return hub.upload(Path(folder), repo_id, **push)

    @classmethod
    def from_pretrained(
        cls: type[FlamingoForConditionalGeneration],  # type: ignore[misc]
        pretrained_model_name_or_path: str | Path,
        *,
        config: FlamingoConfig | None = None,
        language_model: nn.Module | None = None,
        vision_encoder: VisionEncoder | None = None,
        dtype: torch.dtype | str | None = None,
        **hub: Any,
    ) -> FlamingoForConditionalGeneration:
        """Restore a saved model; backbones are loaded by name unless they are given.

        A saved adapter of peft is put into ``language_model``, the very object that is given.
        ``dtype``: of the whole model; default (and ``"auto"``): float32. ``hub`` goes to
        ``huggingface_hub.snapshot_download`` (``revision``, ``token``, ``cache_dir``,
        ``local_files_only``, ``force_download``) for a name that is no local folder. What
        transformers' Auto classes and pipelines pass along (``trust_remote_code`` and its like)
        changes nothing: no code is loaded.

        Raises:
            ValueError: for a backbone whose fingerprint differs from the one that was trained
                with, for weights that are missing, left over or of another shape, and for an
                option that is none of the above (``device_map``: use ``.to`` instead).
        """
        return persistence.load(
            cls,
            str(pretrained_model_name_or_path),
            config=config,
            language_model=language_model,
            vision_encoder=vision_encoder,
            dtype=persistence.as_dtype(dtype),
            hub=persistence.download_options(hub),
        )
