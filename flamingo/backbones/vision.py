"""Frozen vision encoders: an image in, tokens of one width out.

A transformer encoder gives its patch tokens (:class:`flamingo.config.VisionConfig` says of which
layer, with the CLS token or not, normed or not); the embedded EfficientNet-Lite0 the 49 cells of
its last feature map. Each carries its image transform and a fingerprint of all that decides what
its features are.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    PreTrainedModel,
    ViTImageProcessorPil,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from flamingo.backbones import assets, idefics
from flamingo.backbones.clip_crop import OriginalCLIPImageProcessor, as_clip_crops
from flamingo.backbones.efficientnet import FEATURE_DIM, GRID, IMAGE_SIZE, EfficientNetLite0
from flamingo.backbones.fingerprint import fingerprint, weights_digest
from flamingo.backbones.open_clip import is_open_clip, load_open_clip, open_clip_processor
from flamingo.backbones.places import named
from flamingo.backbones.pooled_grid import PooledGrid
from flamingo.backbones.precision import available_device, preferred_dtype
from flamingo.backbones.vision_families import VisionFamily, vision_family, without_head
from flamingo.config import VisionConfig

EMBEDDED = "efficientnet-lite0"
EFFICIENTNET_FILE = "efficientnet_lite0.pth"
"""Weights of a saved encoder, beside the settings of its transform."""

_TRANSFORM_FIELDS = (
    *("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


class VisionEncoder(nn.Module):
    """``features = tokens(pixels)``, frozen: always in evaluation mode, never with gradients.

    ``tokens`` maps ``(image, 3, height, width)`` to ``(image, patch, dim)``. Features come out in
    fp32 whatever ``tokens`` computes in, and autocast around the call changes nothing, so that
    training, evaluation and the feature cache see the same numbers. With ``config.grid`` the
    tokens of the patch ``grid`` (height, width) are averaged to that many on a side.

    Attributes:
        config: what it was loaded from.
        dim: channels of a token.
        patches: tokens of an image that :meth:`transform` made, after averaging.
        image_processor: the transformers image processor behind :meth:`transform`.
        fingerprint: SHA-256 of the weights that are used, which features come out and the
            transform; taken when loading, so moving or casting the encoder keeps it.
    """

    def __init__(
        self,
        config: VisionConfig,
        tokens: nn.Module,
        *,
        dim: int,
        patches: int,
        image_processor: BaseImageProcessor,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.dim = dim
        self.pool, self.patches = _pool(config, grid, patches)
        self.image_processor = image_processor
        self.tokens = tokens
        self.fingerprint = fingerprint(
            weights=weights_digest(tokens.state_dict().values()),
            features=[
                *(type(tokens).__name__, config.layer, config.keep_cls, config.final_norm),
                *([] if config.grid is None else [f"grid {config.grid}"]),
            ],
            transform=transform_settings(image_processor),
        )
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> VisionEncoder:
        """Frozen: stays in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(
        self, pixel_values: Float[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image patch dim"]:
        with torch.autocast(pixel_values.device.type, enabled=False):
            return self.pool(self.tokens(pixel_values).float())

    def transform(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        """One RGB image as the encoder's input, in fp32."""
        return self.image_processor(images=image, return_tensors="pt")["pixel_values"][0]


def _pool(
    config: VisionConfig, grid: tuple[int, int] | None, patches: int
) -> tuple[nn.Module, int]:
    """What averages the tokens, and how many tokens are left of ``patches``."""
    if config.grid is None:
        return nn.Identity(), patches
    if grid is None:
        raise ValueError(f"vision.grid: expected null for {config.name!r}, got {config.grid}")
    height, width = grid
    pool = PooledGrid(height, width, config.grid)
    return pool, patches - height * width + config.grid**2


def load_vision_encoder(config: VisionConfig, *, dtype: torch.dtype | None = None) -> VisionEncoder:
    """Load the encoder that ``config`` names, on the CPU.

    ``dtype`` is what it computes in; default: what the device at hand computes fast
    (:func:`flamingo.backbones.precision.preferred_dtype`).

    Raises:
        ValueError: an unsupported kind of encoder, a layer that it does not have, or no such
            folder.
        OSError: no such hub model (from transformers).
    """
    if dtype is None:
        dtype = preferred_dtype(available_device())
    if config.name == EMBEDDED:
        return load_efficientnet(config, assets.efficientnet_weights()).to(dtype)
    saved = Path(config.name) / EFFICIENTNET_FILE
    if saved.is_file():
        return load_efficientnet(config, saved).to(dtype)
    return _load_transformer(config).to(dtype)


def save_vision_encoder(encoder: VisionEncoder, folder: Path) -> None:
    """Write the weights an encoder was loaded from, and its transform, to a folder of their own.

    ``load_vision_encoder`` with that folder as ``name`` gives the same encoder. Raises
    ``ValueError`` for an encoder that was not loaded by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = Path(encoder.config.name)
    if isinstance(encoder.tokens, EfficientNetLite0):
        embedded = encoder.config.name == EMBEDDED
        weights = assets.efficientnet_weights() if embedded else name / EFFICIENTNET_FILE
        shutil.copyfile(weights, folder / EFFICIENTNET_FILE)
    elif isinstance(encoder.tokens, TransformerTokens):
        # From the source, in fp32: the encoder in memory may be cast, and has fewer blocks.
        _transformer(encoder.config).model.save_pretrained(folder)
    else:
        raise ValueError(
            f"vision encoder: expected one that was loaded by name, got {encoder.config.name!r}, "
            "built in memory: save without it and pass vision_encoder= when loading"
        )
    encoder.image_processor.save_pretrained(folder)


def transform_settings(processor: BaseImageProcessor) -> dict[str, Any]:
    """The settings of an image processor that decide the pixels that come out."""
    settings = processor.to_dict()
    chosen = {name: settings[name] for name in _TRANSFORM_FIELDS if settings.get(name) is not None}
    if isinstance(processor, OriginalCLIPImageProcessor):
        chosen["center_crop"] = "rounded"  # not an option of transformers, see clip_crop.py
    return chosen


# ---------------------------------------------------------------------------- EfficientNet


def load_efficientnet(config: VisionConfig, weights: Path) -> VisionEncoder:
    """EfficientNet-Lite0 from a state dict on disk, in fp32.

    The image is squeezed to 224 x 224 rather than cropped: nothing at its border is lost.
    """
    if (config.layer, config.keep_cls, config.final_norm) != (-1, False, False):
        raise ValueError(
            f"vision.layer, keep_cls, final_norm: expected -1, False, False for {EMBEDDED} (its "
            f"last feature map), got {config.layer}, {config.keep_cls}, {config.final_norm}"
        )
    processor = ViTImageProcessorPil(
        do_convert_rgb=True,
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        resample=Image.Resampling.BICUBIC,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    return VisionEncoder(
        config,
        EfficientNetLite0.from_weights(weights),
        dim=FEATURE_DIM,
        patches=GRID * GRID,
        image_processor=processor,
        grid=(GRID, GRID),
    )


# ---------------------------------------------------------------------------- transformers


class TransformerTokens(nn.Module):
    """Hidden states of one layer of an encoder of transformers.

    ``hidden = norm?(block_k(... block_1(embed(pixels))))``, where k follows from ``layer`` as an
    index into ``(embed, block_1, ..., block_n)``: transformers' ``hidden_states[layer]``. Blocks
    behind k are dropped, they would be computed for nothing.
    """

    def __init__(self, model: PreTrainedModel, family: VisionFamily, config: VisionConfig) -> None:
        super().__init__()
        blocks = family.blocks_of(model)
        states = len(blocks) + 1
        if not -states <= config.layer < states:
            raise ValueError(
                f"vision.layer: expected an index between {-states} and {states - 1} into the "
                f"hidden states of {config.name!r} ({len(blocks)} blocks), got {config.layer}"
            )
        del blocks[config.layer % states :]
        # Some encoders apply their last norm to the tokens and some only to the pooled output:
        # taken out here and applied below, it is the configuration that decides.
        self.norm = getattr(model, family.norm) if config.final_norm else nn.Identity()
        setattr(model, family.norm, nn.Identity())
        self.model = model
        self.skip = 0 if config.keep_cls else family.cls_tokens

    def forward(
        self, pixel_values: Float[Tensor, "image 3 height width"]
    ) -> Float[Tensor, "image patch dim"]:
        hidden = self.model(pixel_values.to(self.model.dtype)).last_hidden_state
        return self.norm(hidden[:, self.skip :])


class _Source(NamedTuple):
    """A vision tower of transformers, its family and where its transform is from."""

    model: PreTrainedModel
    family: VisionFamily
    image_processor: BaseImageProcessor | None = None
    """None: the folder's own, as it is."""


def _transformer(config: VisionConfig) -> _Source:
    clip = vision_family("clip", config.name)
    if is_open_clip(Path(config.name)):
        model, processor = load_open_clip(Path(config.name)), open_clip_processor(Path(config.name))
        return _Source(model, clip, processor)
    source: dict[str, Any] = {"revision": config.revision} if config.revision else {}
    with named("vision.name", config.name):
        found = AutoConfig.from_pretrained(config.name, **source)
    if found.model_type == "idefics":  # its tower is CLIP's
        model = idefics.load_vision_tower(config.name, config.revision)
        processor = idefics.load_image_processor(config.name, config.revision)
        return _Source(model, clip, processor)
    family = vision_family(found.model_type, config.name)
    source |= {"dtype": torch.float32, **family.options}
    return _Source(family.model.from_pretrained(config.name, **source), family)


def _load_transformer(config: VisionConfig) -> VisionEncoder:
    model, family, processor = _transformer(config)
    without_head(model)
    if config.keep_cls and family.cls_tokens == 0:
        raise ValueError(f"vision.keep_cls: expected False, {config.name!r} has no CLS token")
    if processor is None:
        revision = {"revision": config.revision} if config.revision else {}
        processor = AutoImageProcessor.from_pretrained(config.name, backend="pil", **revision)
    processor = as_clip_crops(processor)
    side = cast(int, model.config.patch_size)
    height, width = (pixels // side for pixels in _pixels(processor, config))
    tokens = TransformerTokens(model, family, config)
    return VisionEncoder(
        config,
        tokens,
        dim=model.config.hidden_size,
        patches=height * width + (family.cls_tokens if config.keep_cls else 0),
        image_processor=processor,
        grid=(height, width),
    )


def _pixels(processor: BaseImageProcessor, config: VisionConfig) -> tuple[int, int]:
    """Height and width that the transform gives every image."""
    settings = transform_settings(processor)
    size = settings.get("crop_size" if settings.get("do_center_crop") else "size")
    if not isinstance(size, dict) or "height" not in size:
        raise ValueError(
            f"{config.name!r}: expected an image processor with one output size for every image "
            f"(size or crop_size with height and width), got {size!r}"
        )
    return size["height"], size["width"]
