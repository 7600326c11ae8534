"""A plan: parameters, operations, memory and days of a configuration, before it is launched."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import ViTImageProcessorPil

from flamingo.backbones.language import load_tokenizer
from flamingo.build import build_mixture, open_data, parameter_counts
from flamingo.choices import Mixing, Precision, Sharding
from flamingo.data.mixture import Mixture
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.processor import FlamingoProcessor, place_special_tokens
from flamingo.planning.flops import Flops, needed_flops, step_flops
from flamingo.planning.memory import Layout, device_memory
from flamingo.planning.options import PlanConfig
from flamingo.planning.shapes import Shapes, build_shapes
from flamingo.planning.workload import (
    MicroBatch,
    SequenceShape,
    Workload,
    assumed_workload,
    measured_workload,
)
from flamingo.source_config import CaptionedSourceConfig, SourceConfig, StreamSourceConfig
from flamingo.training.batches import division_of

SEQUENCES = 256
"""Of a step, where neither option nor sources say it."""
TOKENS, IMAGES = 256, 4
"""Of a sequence, likewise (OpenFlamingo's documents)."""
DAY = 86_400


@dataclass(frozen=True)
class DevicePlan:
    """Memory of one layout."""

    layout: Layout
    batch: MicroBatch
    """The micro-batch that needs most."""
    bytes: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Plan:
    """What a run will cost."""

    config: PlanConfig
    parameters: dict[str, tuple[int, bool]]
    """By part; whether it trains."""
    work: Workload
    flops: dict[str, Flops]
    """Of a step over all devices, by part, as they are computed."""
    needed_flops: float
    """Of these what a step's real tokens and media need, once: what training's ``time/mfu`` is
    reckoned with."""
    memory: tuple[DevicePlan, ...]
    steps: int

    @property
    def step_flops(self) -> float:
        """Of a step over all devices, padding and what checkpointing repeats included."""
        return float(sum(part.total for part in self.flops.values()))

    @property
    def seconds_per_step(self) -> float:
        """At the assumed share of the peak; reading data is taken to cost nothing."""
        config = self.config
        return self.needed_flops / (config.gpus * config.device_tflops * 1e12 * config.mfu)

    @property
    def configured(self) -> DevicePlan:
        """Memory of the layout that the configuration has."""
        training = self.config.training
        sharded = training.sharding is Sharding.full and self.config.gpus > 1
        wanted = (sharded, training.gradient_checkpointing)
        return next(d for d in self.memory if (d.layout.sharded, d.layout.checkpointing) == wanted)

    @property
    def days(self) -> float:
        return self.steps * self.seconds_per_step / DAY


def make_plan(config: PlanConfig) -> Plan:
    """The plan of a configuration. Raises ``ValueError`` for what cannot be planned, with the
    field."""
    shapes = build_shapes(config)
    work = workload(config, shapes)
    checkpointing, encodes = config.training.gradient_checkpointing, not config.data.cache_features
    steps = config.training.steps
    if config.total_tokens is not None:
        steps = math.ceil(config.total_tokens / work.tokens)
    return Plan(
        config=config,
        parameters=counts(shapes),
        work=work,
        flops=step_flops(shapes, work, checkpointing=checkpointing, encodes=encodes),
        needed_flops=needed_flops(shapes, work.batches, encodes=encodes) / work.steps,
        memory=memories(config, shapes, work),
        steps=steps,
    )


def workload(config: PlanConfig, shapes: Shapes) -> Workload:
    """A step's sequences, measured on the sources or as the options say."""
    if config.measure:
        mixture = mixture_of(config, shapes.model)
        # In turn, each source as often as the others.
        turns = len(mixture.names) if config.data.mixing is Mixing.round_robin else 1
        return measured_workload(
            mixture,
            config.training,
            world=config.gpus,
            steps=turns * math.ceil(config.measured_steps / turns),
        )
    return assumed_workload(
        assumed_steps(config),
        frames=config.frames,
        learned=config.learned,
        gpus=config.gpus,
        division=division_of(config.training),
    )


def assumed_steps(config: PlanConfig) -> list[list[SequenceShape]]:
    """A step's sequences; of sources in turn, a step for each of them.

    As long as their sources let them be, unless the options say otherwise. With another number than
    the sources', in the same shares.
    """
    own = [[_shape(config, source)] * source.sequences for source in config.data.sources]
    if config.data.mixing is not Mixing.round_robin:
        own = [[shape for shapes in own for shape in shapes]] if own else []
    steps = own or [[_shape(config, None)] * SEQUENCES]
    return [_resized(step, config.sequences or len(step)) for step in steps]


def _resized(sequences: list[SequenceShape], count: int) -> list[SequenceShape]:
    return [sequences[index * len(sequences) // count] for index in range(count)]


def _shape(config: PlanConfig, source: SourceConfig | None) -> SequenceShape:
    tokens, images = min(TOKENS, config.data.max_tokens), IMAGES
    if isinstance(source, StreamSourceConfig) and source.max_tokens is not None:
        tokens = source.max_tokens
    if isinstance(source, CaptionedSourceConfig):
        images = 1
    return SequenceShape(
        tokens=config.tokens or tokens,
        images=images if config.images is None else config.images,
    )


def mixture_of(config: PlanConfig, model: FlamingoForConditionalGeneration) -> Mixture:
    """The configured sources as training would read them; of the backbones only the tokenizer is
    loaded."""
    tokenizer = place_special_tokens(
        load_tokenizer(config.language),
        image_token_id=model.config.image_token_id,
        end_of_chunk_token_id=model.config.end_of_chunk_token_id,
    )
    processor = FlamingoProcessor(ViTImageProcessorPil(), tokenizer)
    return build_mixture(config, processor, open_data(config.data))


def counts(shapes: Shapes) -> dict[str, tuple[int, bool]]:
    """Parameters of each part, and whether it trains."""
    return {"vision_encoder": (shapes.encoder.parameters, False), **parameter_counts(shapes.model)}


def memories(config: PlanConfig, shapes: Shapes, work: Workload) -> tuple[DevicePlan, ...]:
    """Plain and sharded, each without and with checkpointing. On one device nothing is sharded."""
    dtype = torch.float32 if config.training.precision is Precision.fp32 else torch.bfloat16
    layouts = [  # every GPU of the table computes bf16 fast
        Layout(config.gpus, sharded, checkpointing, dtype, vision_dtype=torch.bfloat16)
        for sharded in (False, True)
        for checkpointing in (False, True)
        if config.gpus > 1 or not sharded
    ]
    return tuple(
        max(
            (DevicePlan(layout, b, device_memory(shapes, b, layout)) for b in work.largest),
            key=lambda device: device.total,
        )
        for layout in layouts
    )


def plan_values(plan: Plan) -> dict[str, Any]:
    """A plan as JSON values."""
    return {
        "name": plan.config.name,
        "parameters": {
            part: {"count": count, "trained": trained}
            for part, (count, trained) in plan.parameters.items()
        },
        "step": {
            "origin": plan.work.origin,
            "sequences": plan.work.sequences,
            "tokens": plan.work.tokens,
            "padded_tokens": plan.work.padded_tokens,
            "media": plan.work.media,
            "learned": plan.work.learned,
            "flops": {part: asdict(flops) for part, flops in plan.flops.items()},
            "needed_flops": plan.needed_flops,
            "seconds": plan.seconds_per_step,
        },
        "memory": [
            {
                "sharded": device.layout.sharded,
                "checkpointing": device.layout.checkpointing,
                "configured": device is plan.configured,
                "bytes": device.bytes,
                "total": device.total,
            }
            for device in plan.memory
        ],
        "gpus": plan.config.gpus,
        "tflops": plan.config.device_tflops,
        "gib": plan.config.device_gib,
        "mfu": plan.config.mfu,
        "steps": plan.steps,
        "days": plan.days,
    }
