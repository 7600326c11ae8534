"""A model on its devices: what is computed again, compiled, and which part lies where."""

from __future__ import annotations

from accelerate import Accelerator
from torch import nn

from flamingo.backbones.language import require_separate_documents
from flamingo.config import TrainingConfig
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.training.compilation import compile_trained
from flamingo.training.sharding import is_sharded, shard


def place(
    model: FlamingoForConditionalGeneration, settings: TrainingConfig, accelerator: Accelerator
) -> None:
    """Make ``model`` ready to train as ``settings`` say, in place; names of weights stay.

    Its parameters may be other objects afterwards. Raises ``ValueError`` for what a setting cannot
    be had with, before any work is done.
    """
    if settings.packing is not None:
        require_separate_documents(model.language_model)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if settings.compile:
        compile_trained(model, accelerator.device)
    if is_sharded(settings, accelerator):
        for name, part in model.named_children():
            if name != "language_model":  # it goes there in parts
                part.to(accelerator.device)
        shard(model, accelerator)
    else:
        nn.Module.to(model, accelerator.device)
