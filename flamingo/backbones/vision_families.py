"""Vision towers of transformers: the few facts that differ between families.

The one place to name a family that is to be read: loading (:mod:`flamingo.backbones.vision`) and
planning without weights (:mod:`flamingo.planning.shapes`) both ask here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn
from transformers import (
    CLIPVisionModel,
    Dinov2Model,
    PreTrainedModel,
    SiglipVisionModel,
    ViTModel,
)


@dataclass(frozen=True)
class VisionFamily:
    """Where a family keeps what the features are made of."""

    model: type[PreTrainedModel]
    """Its vision tower, which gives ``last_hidden_state``."""
    blocks: str
    """Path of the list of blocks below the tower."""
    norm: str
    """Name of the tower's last norm."""
    cls_tokens: int
    """Tokens in front of the patches'."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the tower is built with: nothing behind the tokens."""

    def blocks_of(self, model: PreTrainedModel) -> nn.ModuleList:
        """The blocks of ``model``, a tower of this family, first to last."""
        return cast(nn.ModuleList, model.get_submodule(self.blocks))


def vision_family(model_type: str, name: str) -> VisionFamily:
    """The family of a ``model_type``, as in ``config.json``.

    Raises ``ValueError`` naming ``name``, where the configuration is from, for one that is not
    known.
    """
    match model_type:
        case "clip" | "clip_vision_model":
            return VisionFamily(CLIPVisionModel, "encoder.layers", "post_layernorm", 1)
        case "siglip" | "siglip_vision_model":
            return VisionFamily(SiglipVisionModel, "encoder.layers", "post_layernorm", 0)
        case "dinov2":
            return VisionFamily(Dinov2Model, "encoder.layer", "layernorm", 1)
        case "vit":
            no_pooling = {"add_pooling_layer": False}
            return VisionFamily(ViTModel, "layers", "layernorm", 1, no_pooling)
        case other:
            raise ValueError(
                "vision.name: expected 'efficientnet-lite0' or a CLIP, SigLIP, DINOv2, ViT or "
                f"IDEFICS model, got {name!r}, which is {other!r}"
            )


def without_head(model: PreTrainedModel) -> PreTrainedModel:
    """``model`` without the pooling behind its tokens, where that is no option of its family's."""
    if isinstance(model, SiglipVisionModel):
        model.use_head = False
        del model.head
    return model
