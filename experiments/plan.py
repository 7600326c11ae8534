"""Say what a run will cost, before it is launched: parameters, FLOPs, memory, days.

    python experiments/plan.py experiment=openflamingo_9b_training gpus=8 gpu=h100 \\
        training.micro_batches=24
    python experiments/plan.py experiment=quickstart measure=true trial_steps=3

Takes every key of a run's configuration, and those of the machine and its sequences: gpus, gpu or
peak_tflops and memory_gib, mfu, total_tokens, measure, sequences, tokens, images, frames, learned,
trial_steps, out. Needs no weights: shapes come from a local folder's config.json, from a table of
the released backbones, or from the hub. trial_steps checks the plan by real steps on this machine.
"""

from __future__ import annotations

import json
from pathlib import Path

from accelerate import Accelerator

from flamingo.command_line import entry_point
from flamingo.files import write_atomically
from flamingo.planning.options import PlanConfig
from flamingo.planning.plan import make_plan, plan_values
from flamingo.planning.table import plan_text, trial_text
from flamingo.planning.trial import run_trial, trial_values


def main(config: PlanConfig) -> None:
    """Print the plan. Raises ``ValueError`` for what cannot be planned."""
    plan = make_plan(config)
    print(plan_text(plan))
    values = plan_values(plan)
    if config.trial_steps:
        trial = run_trial(config, plan.configured.batch, Accelerator(mixed_precision="no").device)
        print(f"\n{trial_text(trial)}")
        values["trial"] = trial_values(trial)
    if config.out is not None:
        write_atomically(Path(config.out), json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    entry_point(main, PlanConfig, verbatim=["out"])
