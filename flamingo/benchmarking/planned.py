"""The FLOPs of a training step by the formulas of ``experiments/plan.py``, to check the counter."""

from __future__ import annotations

from flamingo.benchmarking.bare import BareLM
from flamingo.benchmarking.contender import Contender
from flamingo.benchmarking.ours import Ours
from flamingo.benchmarking.work import TrainingWork
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.planning.flops import batch_flops, head_flops, language_flops
from flamingo.planning.shapes import EncoderShape, Shapes
from flamingo.planning.workload import BatchShape
from flamingo.training.loss import keep_mask


def planned_flops(
    contender: Contender, work: TrainingWork, ours: FlamingoForConditionalGeneration
) -> float | None:
    """Of ``contender``'s training step on ``work``; None for peers, which have no formula.

    The bare LM's are those of the language model in ``ours``.
    """
    rows, length = work.input_ids.shape
    learned = int(keep_mask(work.labels).sum())
    match contender:
        case BareLM():
            head = head_flops(ours)
            layers = language_flops(ours, length) * rows
            return float(layers.total + (2 * head.forward) * rows * length)
        case Ours():
            shape = BatchShape(
                rows, length, work.features.shape[1], int(work.images.sum()), 1, learned
            )
            shapes = Shapes(
                ours, EncoderShape(0, work.features.shape[3], ours.config.vision_dim, 0)
            )
            parts = batch_flops(shapes, shape, checkpointing=False, encodes=False)
            return float(sum(part.total for part in parts.values()))
        case _:
            return None
