"""Sharding (FSDP2): each process holds its share of every weight, gradient and moment.

A unit's weights are gathered just before it computes and given back behind it, forward and
backward. Units are the decoder layers of the frozen language model, the gated blocks, the
resampler, and what is left. ``fully_shard`` is called here and not by accelerate, which would shard
by module class (an LM layer's class differs from family to family, and the projection of a block's
media is called on its own, outside its block), average gradients where the loss is already a sum
over processes, and cast what trains.

Every process must gather the same units in the same order. Work is made even for that by
:mod:`flamingo.training.even_work`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from flamingo.backbones import language as lm
from flamingo.choices import Sharding
from flamingo.config import TrainingConfig
from flamingo.model.cross_attention import GatedCrossAttentionBlock
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.persistence import trained_tensors
from flamingo.model.sharded import whole
from flamingo.training.checkpoint import Saveable

# ---------------------------------------------------------------------------- the model


def is_sharded(settings: TrainingConfig, accelerator: Accelerator) -> bool:
    """Whether the model will be sharded: one process alone holds all of it."""
    return settings.sharding is Sharding.full and accelerator.num_processes > 1


def shard(model: FlamingoForConditionalGeneration, accelerator: Accelerator) -> None:
    """Shard ``model`` over all processes, in place.

    Parameters keep their names and become ``DTensor``; gradients are summed over processes, not
    averaged. Parts may still be on the CPU: units go to the device one by one, so the whole
    language model need not fit there. The vision encoder is not sharded. Raises ``ValueError`` for
    quantised weights, which cannot be cut, and for a torch that only averages gradients.
    """
    _require_floats(model)
    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise ValueError(
            "training.sharding=full: expected a torch whose FSDP2 can sum gradients (2.13 can), "
            f"got {torch.__version__}"
        )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for unit in _units(model):
        _shard_unit(unit, mesh)
    encoder = model.vision_encoder
    # The rest is given back behind the forward pass too, so that between steps, whatever was the
    # last thing done, every weight is in its parts.
    fully_shard(
        model,
        mesh=mesh,
        reshard_after_forward=True,
        ignored_params=set() if encoder is None else set(encoder.parameters()),
    )
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _units(model: FlamingoForConditionalGeneration) -> Iterator[list[nn.Module]]:
    """Modules whose weights are gathered together: those within others first.

    Each is entered by calling it, by every process, wherever there are media. The head is part of
    the rest: the loss calls it as often as a process has learned tokens for.
    """
    for block in _blocks(model):
        attention = block.attention
        media = [attention.to_kv, attention.k_norm]  # called ahead of the block, see project_media
        yield [module for module in media if module is not None]
        yield [block]
    yield [model.resampler]
    for layer in lm.decoder_layers(model.language_model):
        yield [layer]
    if not lm.has_tied_head(model.language_model):
        yield [model.language_model.get_input_embeddings()]


def _blocks(model: FlamingoForConditionalGeneration) -> list[GatedCrossAttentionBlock]:
    return [b for b in model.cross_attention.values() if isinstance(b, GatedCrossAttentionBlock)]


def _shard_unit(unit: list[nn.Module], mesh: DeviceMesh) -> None:
    if any(True for module in unit for _ in module.parameters()):
        fully_shard(unit if len(unit) > 1 else unit[0], mesh=mesh, reshard_after_forward=True)


def _require_floats(model: FlamingoForConditionalGeneration) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise ValueError(
                f"training.sharding=full: expected float weights, got {parameter.dtype} in {name}: "
                "train a quantised language model with training.sharding=none"
            )


def forget_unread_media(model: FlamingoForConditionalGeneration) -> None:
    """Drop the gradients of what only media reach, after a step in which no process had any.

    They are the zeros of stand-ins (:mod:`flamingo.training.even_work`). Without sharding there are
    none, and the optimiser leaves such a weight as it is.
    """
    for part in (model.resampler, *(block.attention for block in _blocks(model))):
        for parameter in part.parameters():
            parameter.grad = None
    for block in _blocks(model):
        if block.attention_gate is not None:
            block.attention_gate.grad = None


# ---------------------------------------------------------------------------- its whole state


@dataclass(frozen=True, slots=True)
class WholeModel:
    """A model whose trained weights were put together, as ``save_pretrained`` writes it."""

    model: FlamingoForConditionalGeneration
    weights: Mapping[str, Tensor]
    """By name, on the CPU."""

    def save_pretrained(self, save_directory: Path, /) -> None:
        self.model.save_pretrained(save_directory, state_dict=self.weights)


def whole_model(model: FlamingoForConditionalGeneration, *, keep: bool) -> Saveable:
    """``model`` for saving by a process that is to ``keep`` it. Every process must call it."""
    tensors = trained_tensors(model)
    if not any(isinstance(tensor, DTensor) for tensor in tensors.values()):
        return model
    weights = {}
    for name, tensor in tensors.items():
        complete = whole(tensor)
        if keep:
            weights[name] = complete.cpu()
    return WholeModel(model, weights)


def whole_optimizer_state(optimizer: torch.optim.Optimizer, *, keep: bool) -> dict[str, Any] | None:
    """``optimizer.state_dict()`` with whole moments on the CPU; None where it is not to be kept.

    It is the same whatever the number of processes and the sharding: moments stand in the order of
    the groups, which list the names of their parameters. Every process must call it.
    """
    state = optimizer.state_dict()
    gathered: dict[int, dict[str, Tensor]] = {}
    for index, own in state["state"].items():
        complete = {key: whole(value) for key, value in own.items()}
        if keep:
            gathered[index] = {key: value.cpu() for key, value in complete.items()}
    return {**state, "state": gathered} if keep else None


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Go on from :func:`whole_optimizer_state`; each process takes its parts.

    Raises ``ValueError`` when it is of other parameters.
    """
    expected = [group["names"] for group in optimizer.param_groups]
    actual = [group["names"] for group in state["param_groups"]]
    if expected != actual:
        raise ValueError(f"optimizer state: expected one of {expected}, got one of {actual}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        index: {key: _part(value, parameters[index]) for key, value in own.items()}
        for index, own in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": parts})


def _part(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """This process's part of a moment of ``parameter`` (of a step count: all of it)."""
    if value.ndim == 0 or not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(
        value.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        src_data_rank=None,  # every process has read the same file
    )
