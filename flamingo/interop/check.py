"""Checks of a conversion: the tensors, and the logits of one prompt with one image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import IdeficsForVisionText2Text

from flamingo.images import open_image
from flamingo.interop.open_flamingo_export import open_flamingo_state
from flamingo.interop.open_flamingo_file import CheckpointFile
from flamingo.interop.open_flamingo_names import canonical, to_ours
from flamingo.model.auto import FlamingoForConditionalGeneration, FlamingoProcessor
from flamingo.types import IMAGE_TOKEN

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Of logits, relative to their largest: what another order of the same sums may do."""

Logits = Float[Tensor, "token vocabulary"]


@dataclass(frozen=True)
class Check:
    """Something that was compared, and what came out. A failed check is an error instead."""

    what: str
    found: str


@dataclass(frozen=True)
class Sample:
    """A prompt; ``image`` stands at each of its ``<image>``."""

    text: str
    image: Image.Image

    @classmethod
    def read(cls, text: str, path: str | None) -> Sample:
        """With the image at ``path``, or a gradient from black to white.

        Raises ``ValueError`` for a text without ``<image>``, which would check the backbone alone,
        and, as ``FileNotFoundError``, as :func:`flamingo.images.open_image` does.
        """
        if IMAGE_TOKEN not in text:
            raise ValueError(f"sample.text: expected a prompt with {IMAGE_TOKEN}, got {text!r}")
        if path is None:
            return cls(text, Image.linear_gradient("L").convert("RGB"))
        return cls(text, open_image(path))

    def inputs(self, processor: FlamingoProcessor) -> dict[str, Tensor]:
        images = [self.image] * self.text.count(IMAGE_TOKEN)
        return dict(processor(self.text, images or None))


@torch.no_grad()
def sample_logits(
    model: FlamingoForConditionalGeneration, processor: FlamingoProcessor, sample: Sample
) -> Logits:
    """Logits behind every token of the sample."""
    return model.eval()(**sample.inputs(processor)).logits[0].float()


@torch.no_grad()
def idefics_logits(
    reference: IdeficsForVisionText2Text, processor: FlamingoProcessor, sample: Sample
) -> Logits:
    """Those of transformers' own Idefics, every token of which sees the last image before it."""
    inputs = sample.inputs(processor)
    is_image = inputs["input_ids"][0] == processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    time = is_image.long().cumsum(dim=0)
    media = torch.arange(1, int(time[-1]) + 1)
    output = reference.eval()(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        pixel_values=inputs["pixel_values"][:, :, 0],
        image_attention_mask=(time[None, :, None] == media).long(),
    )
    return output.logits[0].float()


def next_tokens(logits: Logits, processor: FlamingoProcessor, count: int = 5) -> str:
    """The likeliest continuations of a sample, for a person to judge."""
    best = logits[-1].softmax(dim=0).topk(count)
    words = [processor.tokenizer.decode([int(token)]) for token in best.indices]
    return ", ".join(f"{word!r} {p:.1%}" for word, p in zip(words, best.values, strict=True))


def check_equal(before: Tensor, after: Tensor, place: object) -> Check:
    """What was written must give the logits it had, bit for bit. Raises ``ValueError``."""
    if before.shape != after.shape or not torch.equal(before, after):
        raise ValueError(
            f"{place}: expected the logits of the sample as they were before it was written, got "
            f"others (shapes {tuple(before.shape)} and {tuple(after.shape)}); do not use it"
        )
    tokens, columns = before.shape
    return Check("logits of the sample, opened again", f"equal ({tokens} tokens x {columns})")


def check_close(ours: Tensor, theirs: Tensor, whose: str, tolerance: float) -> Check:
    """Logits of two implementations, with one of :data:`TOLERANCES`.

    Raises ``ValueError`` for more than rounding.
    """
    if ours.shape != theirs.shape:
        raise ValueError(
            f"logits of {whose}: expected shape {tuple(theirs.shape)}, got {tuple(ours.shape)}"
        )
    largest = float((ours - theirs).abs().max())
    allowed = tolerance * max(1.0, float(theirs.abs().max()))
    if not largest <= allowed:
        raise ValueError(f"logits of {whose}: expected within {allowed:.1e}, got {largest:.1e} off")
    return Check(f"logits of the sample against {whose}", f"within {largest:.1e}")


def check_way_back(model: FlamingoForConditionalGeneration, file: CheckpointFile) -> Check:
    """What trains, back in OpenFlamingo's names, must be the file's, bit for bit; of embeddings
    the rows of new tokens.

    Raises ``ValueError`` with the first tensor that is not.
    """
    compared = 0
    new = model.new_tokens.token_ids
    for name, tensor in open_flamingo_state(model):
        ours = to_ours(name, file.names.layers)
        own = canonical(name, file.names).removeprefix("lang_encoder.")
        source = file.language_model.get(own)
        if ours is not None:
            theirs = file.weights[file.ours[ours]]
        elif source is not None:
            theirs, tensor = file.weights[source][new], tensor[new]
        else:
            continue
        if not bool(theirs.isfinite().all()):
            raise ValueError(f"{file.path}: {name}: expected finite values, got others among them")
        if not torch.equal(theirs.to(tensor.dtype), tensor):
            raise ValueError(f"{file.path}: expected {name} back as it was, got other values")
        compared += 1
    return Check("what trains, back in OpenFlamingo's names, against the file", f"{compared} equal")
