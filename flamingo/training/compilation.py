"""torch.compile of what trains."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import torch
from torch import nn

from flamingo.model.flamingo import FlamingoForConditionalGeneration


def compile_trained(model: FlamingoForConditionalGeneration, device: torch.device) -> None:
    """Compile the attentions and feed-forwards of resampler and gated blocks, in place.

    Each module keeps its place and its weights' names: only its ``forward`` is another. Sizes of
    batches, texts and media are symbols, so that a new number of images or tokens compiles nothing
    anew. What is around them (hooks of the language model and of sharding, recomputing
    activations) stays as it is. Modules of one shape share their code. Raises ``ValueError`` where
    the CPU's code cannot be compiled.
    """
    if not has_compiler(device):
        needed = "Triton" if device.type == "cuda" else "a C++ compiler (g++ in PATH, or CXX set)"
        raise ValueError(
            f"training.compile: expected {needed} for code of {device.type}, found none; install "
            "it, or set training.compile=false"
        )
    for module in compiled_modules(model):
        module.forward = torch.compile(module.forward, dynamic=True)


def has_compiler(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs to make code for ``device``."""
    # Modules of torch that take a second to import, for those who compile.
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch.utils._triton import has_triton

    if device.type == "cuda":
        return has_triton()
    try:
        return shutil.which(get_cpp_compiler()) is not None
    except RuntimeError:  # what it raises when none of its candidates runs
        return False


def compiled_modules(model: FlamingoForConditionalGeneration) -> Iterator[nn.Module]:
    """What is compiled: none has hooks, and none calls another of them."""
    for layer in (*model.cross_attention.values(), *getattr(model.resampler, "layers", ())):
        for name, child in layer.named_children():
            if name in ("attention", "feed_forward"):
                yield child
