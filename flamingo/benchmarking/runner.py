"""Runs a case: everyone who can, in alternation."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flamingo.benchmarking.cases import Case, Works
from flamingo.benchmarking.contender import CannotDo, Who
from flamingo.benchmarking.counting import count, peak_memory
from flamingo.benchmarking.planned import planned_flops
from flamingo.benchmarking.results import CaseResult, Measured
from flamingo.benchmarking.roofline import Machine
from flamingo.benchmarking.timing import Effort, Run, alternate
from flamingo.benchmarking.world import World

OWN_RESAMPLER = "our resampler"
"""Timed among the training steps, so that what a step costs beyond it is paired round by round."""
PEERS = {who.value for who in Who} - {Who.ours.value, Who.bare.value}
TRAINING = (Case.train_short, Case.train_documents)


@dataclass(frozen=True)
class Counting:
    """What is counted besides the time: memory by one more call, FLOPs and bytes by two."""

    flops: bool
    memory: bool


def run_case(
    world: World,
    works: Works,
    case: Case,
    effort: Effort,
    counting: Counting,
    machine: Machine,
    settings: dict[str, Any],
    tell: Callable[[str], object],
) -> CaseResult:
    """Time ``case``. A peer that raises has failed, with its message; what ours or the bare LM
    raise is raised."""
    failed = {who.value: reason for who, reason in world.absent.items()}
    runs: dict[str, Run] = {}
    for who, contender in world.contenders.items():
        try:
            runs[who.value] = works.run(case, contender)
        except CannotDo as reason:
            failed[who.value] = str(reason)
    if case in TRAINING and Who.ours in world.contenders:
        runs[OWN_RESAMPLER] = world.contenders[Who.ours].resampler(works.training(case))
    seconds, errors = alternate(runs, effort, works.device, may_fail=PEERS, tell=tell)
    for name, error in errors.items():
        message = str(error).strip() or "no message"
        failed[name] = f"{type(error).__name__}: {message.splitlines()[0]}"
    measured = {}
    if counting.memory:  # what a round left behind must not be freed in the midst of it
        gc.collect()
    for name in seconds:
        run = runs[name]
        tell(f"{name}, counting")
        measured[name] = Measured(
            seconds[name],
            peak_memory(run, works.device) if counting.memory else None,
            count(run) if counting.flops else None,
            _planned(world, works, case, name),
        )
    for contender in world.contenders.values():
        contender.model.zero_grad(set_to_none=True)
    return CaseResult(case, measured, failed, machine, settings)


def _planned(world: World, works: Works, case: Case, name: str) -> float | None:
    if case not in TRAINING or name == OWN_RESAMPLER:
        return None
    contender = world.contenders[Who(name)]
    return planned_flops(contender, works.training(case), world.ours)


def compile_parts(world: World) -> None:
    """``torch.compile`` of every contender's layers and blocks, each by itself, in place."""
    for contender in world.contenders.values():
        for part in contender.parts:
            part.compile()
