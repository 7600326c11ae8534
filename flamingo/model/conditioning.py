"""How one frozen language model instance is made to read media, without changing it.

Each Flamingo hangs a hook before every decoder layer of its LM. What a call's media are travels
with the call, as a keyword argument that the decoder hands to each layer: the hooks take it out
again and run the gated block that belongs there. Calls without the argument, and calls of another
Flamingo on the same LM, pass untouched; nothing is stored on the LM between calls.

Four families (MPT, Falcon, BLOOM, GPT-J) do not hand keyword arguments on. For them the call stands
in a context variable while it runs: what other threads ask of the same LM meanwhile never sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from flamingo.config import CrossAttentionConfig
from flamingo.model.cross_attention import GatedCrossAttentionBlock
from flamingo.model.reading import KeysValues, Reading

MEDIA_KEYWORD = "flamingo_media"


@dataclass(frozen=True, eq=False)
class ConditionedCall:
    """The media of one forward call: keys and values for each block, and who reads which."""

    owner: Conditioning
    keys_values: Mapping[int, KeysValues]
    """By decoder layer; empty when the call has no media at all."""
    reading: Reading | None
    reached: set[int] = field(default_factory=set)
    """Layers whose hooks the call came to."""


_under_way: ContextVar[ConditionedCall | None] = ContextVar("_under_way", default=None)
"""The call that this thread is in, where the decoder does not carry it."""


class Conditioning:
    """The hooks of one set of gated blocks on one LM's decoder layers."""

    def __init__(
        self,
        layers: nn.ModuleList,
        blocks: Mapping[int, GatedCrossAttentionBlock],
        *,
        passes_keywords: bool,
    ) -> None:
        self._blocks = blocks
        self._passes_keywords = passes_keywords
        take = self._take_keyword if passes_keywords else self._take_under_way
        self._handles: list[RemovableHandle] = [
            layer.register_forward_pre_hook(partial(take, index), with_kwargs=True)
            for index, layer in enumerate(layers)
        ]

    def detach(self) -> None:
        """Take every hook off the LM: it is as it was before."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def run(self, decoder: Callable[..., Any], call: ConditionedCall, **inputs: Any) -> Any:
        """``decoder(**inputs)`` with the call's media read before the conditioned layers.

        Raises ``ValueError`` for a decoder that takes keyword arguments and drops them: it would
        answer blindly.
        """
        if not self._handles:
            raise ValueError("this model was detached from its language model: build a new one")
        if self._passes_keywords:
            output = decoder(**inputs, **{MEDIA_KEYWORD: call})
        else:
            before = _under_way.set(call)
            try:
                output = decoder(**inputs)
            finally:
                _under_way.reset(before)
        if missed := sorted(self._blocks.keys() - call.reached):
            raise ValueError(
                "language model: expected a decoder that hands keyword arguments on to its layers, "
                "or one of DROP_KEYWORDS (flamingo/backbones/language.py), but media did not "
                f"reach layers {missed}"
            )
        return output

    def _take_keyword(
        self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        call = kwargs.get(MEDIA_KEYWORD)
        if not isinstance(call, ConditionedCall) or call.owner is not self:
            return None
        rest = {name: value for name, value in kwargs.items() if name != MEDIA_KEYWORD}
        if index not in self._blocks:
            return args, rest
        return self._condition(index, call, args, rest)

    def _take_under_way(
        self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        call = _under_way.get()
        if call is None or call.owner is not self or index not in self._blocks:
            return None
        return self._condition(index, call, args, kwargs)

    def _condition(
        self, index: int, call: ConditionedCall, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        call.reached.add(index)
        block, media = self._blocks[index], call.keys_values.get(index)
        if args:
            return (block(args[0], media, call.reading), *args[1:]), kwargs
        stream = kwargs["hidden_states"]
        return args, kwargs | {"hidden_states": block(stream, media, call.reading)}


def conditioned_layers(options: CrossAttentionConfig, layers: int) -> Sequence[int]:
    """Indices of the LM layers that a gated block stands before.

    Raises ``ValueError`` when an index is beyond the LM's layers, or none is chosen.
    """
    if options.layers is not None:
        chosen = options.layers
    else:
        assert options.every is not None
        chosen = [i for i in range(layers) if (i + 1) % options.every == 0]
    if not chosen or chosen[-1] >= layers:
        raise ValueError(
            f"cross_attention.layers: expected indices below the LM's {layers} layers, got "
            f"{chosen} (every={options.every}, layers={options.layers})"
        )
    return chosen
