"""Logit checks of a conversion, on one prompt with one image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from flamingo.interop.open_flamingo_export import open_flamingo_state
from flamingo.interop.report import Check
from flamingo.model.auto import FlamingoForConditionalGeneration, FlamingoProcessor

TOLERANCE = 1e-4
"""Of logits in fp32, relative to their largest; another order of the same sums stays below it."""

Logits = Float[Tensor, "token vocabulary"]


def sample_image(path: str | None) -> Image.Image:
    """The image at ``path``, or a gradient from black to white."""
    if path is None:
        return Image.linear_gradient("L").convert("RGB")
    return Image.open(path).convert("RGB")


@torch.no_grad()
def sample_logits(
    model: FlamingoForConditionalGeneration,
    processor: FlamingoProcessor,
    text: str,
    image: Image.Image,
) -> Logits:
    """Logits of every next token of ``text``, which shows ``image`` at its ``<image>``."""
    inputs = processor(text, [image] * text.count("<image>") or None).to(model.device)
    return model.eval()(**inputs).logits[0].float().cpu()


def check_reopened(before: Logits, after: Logits, place: str) -> Check:
    """What was written must give the logits it had, bit for bit. Raises ``ValueError``."""
    what = "logits of the sample from what was written, against those before"
    if before.shape != after.shape or not torch.equal(before, after):
        raise ValueError(f"{place}: expected {what} to be equal, got {_distance(before, after)}")
    return Check(what, f"equal, {before.shape[0]} tokens x {before.shape[1]}")


def check_same_logits(ours: Logits, theirs: Logits, whose: str) -> Check:
    """Logits of two implementations. Raises ``ValueError`` for more than rounding."""
    columns = min(ours.shape[1], theirs.shape[1])
    largest = float((ours[:, :columns] - theirs[:, :columns]).abs().max())
    allowed = TOLERANCE * max(1.0, float(theirs.abs().max()))
    what = f"logits of the sample against {whose}"
    if not largest <= allowed:
        raise ValueError(f"{what}: expected a difference of at most {allowed:.1e}, got {largest}")
    return Check(what, f"largest difference {largest:.1e}, allowed {allowed:.1e}")


def check_way_back(
    model: FlamingoForConditionalGeneration, file: Callable[[str], Tensor | None], path: Path
) -> Check:
    """Back in OpenFlamingo's names, what trains must be the file's, bit for bit.

    ``file`` gives a tensor of the checkpoint by OpenFlamingo's name. Raises ``ValueError``.
    """
    trained = dict(model.trainable_parameters())
    equal = 0
    for name, tensor in open_flamingo_state(model):
        original = file(name)
        if original is not None and original.shape == tensor.shape:
            if not torch.equal(original.to(tensor.dtype), tensor):
                raise ValueError(f"{path}: {name}: expected the file's tensor back, got another")
            equal += 1
    if equal < len(trained) - 4:
        raise ValueError(f"{path}: expected {len(trained)} tensors back, found {equal} in the file")
    return Check("tensors converted back to OpenFlamingo's names, against the file", f"{equal} equal")


def next_tokens(logits: Logits, processor: FlamingoProcessor, count: int = 5) -> str:
    """The likeliest continuations of the sample, for a person to judge."""
    best = logits[-1].softmax(dim=0).topk(count)
    words = processor.tokenizer.batch_decode(best.indices[:, None])
    return ", ".join(f"{word!r} {p:.0%}" for word, p in zip(words, best.values, strict=True))


@torch.no_grad()
def reference_logits(
    reference: PreTrainedModel, processor: FlamingoProcessor, text: str, image: Image.Image
) -> Logits:
    """The same sample through transformers' own Idefics: each token sees the last image."""
    inputs = processor(text, [image] * text.count("<image>") or None)
    is_image = inputs["input_ids"][0] == processor.tokenizer.convert_tokens_to_ids("<image>")
    time = is_image.cumsum(dim=0)
    images = int(time[-1])
    mask = time[None, :, None] == torch.arange(1, images + 1)[None, None, :]
    output = reference.eval()(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        pixel_values=inputs["pixel_values"][:, :, 0],
        image_attention_mask=mask.long(),
    )
    return output.logits[0].float()


def _distance(a: Logits, b: Logits) -> str:
    if a.shape != b.shape:
        return f"shapes {tuple(a.shape)} and {tuple(b.shape)}"
    return f"a largest difference of {(a - b).abs().max():.2g}"
