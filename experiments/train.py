"""Train a Flamingo on a mixture of sources, into <runs>/<name>/seed=<seed>.

The same command continues an interrupted run from its newest checkpoint, and says so if the run is
finished. On several GPUs: accelerate launch experiments/train.py ... (docs/devices.md), on Slurm:
launcher=slurm (docs/launching.md). SIGTERM, SIGUSR1, SIGUSR2 and Ctrl-C save a checkpoint first;
the status is then 128 + the signal.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext

from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache

from flamingo.backbones.precision import resolve_dtype
from flamingo.build import Parts, build_parts, open_data, parameter_counts, shards_of
from flamingo.choices import Mixing
from flamingo.command_line import entry_point
from flamingo.config import RunConfig
from flamingo.data.open_files import allow_open_files
from flamingo.launching import circumstances_of_launch, hand_over, in_launched_job, join_processes
from flamingo.planning.utilisation import run_utilisation
from flamingo.run_directory import RunDirectory
from flamingo.sweeps import own_overrides
from flamingo.training.checkpoint import CheckpointError, latest_checkpoint
from flamingo.training.distributed import build_accelerator, check_distributed, leave_processes
from flamingo.training.failures import OtherProcessError, TrainingError, explaining
from flamingo.training.loop import NonFiniteLossError, TrainingResult, train
from flamingo.training.sharding import is_sharded
from flamingo.training.tracking import check_access, check_tracking

logger = logging.getLogger(__name__)


def main(config: RunConfig) -> None:
    """Train, or end the process with a message: status 0 only if the run is finished."""
    clear_device_cache(garbage_collection=True)  # what an earlier job of a sweep left behind
    join_processes()
    accelerator = build_accelerator(config.training.timeout_minutes)
    try:
        result = run(config, accelerator)
    except (ValueError, OSError, CheckpointError, NonFiniteLossError, TrainingError) as error:
        logger.debug("where it happened", exc_info=True)  # hydra.verbose=true
        # Without a farewell to the other processes: they may be gone, or never answer.
        sys.exit(message(error, accelerator))
    is_main = accelerator.is_main_process
    if in_launched_job() or not result.finished:
        leave_processes()
    if not result.finished:
        if is_main:
            print(f"Stopped at step {result.steps}, saved. The same command continues.")
        if result.signal is not None:
            hand_over(result.signal)
        if in_launched_job() and not is_main:
            sys.exit(0)  # an error here would end the main process, which asks for another turn
        sys.exit(128 + (result.signal or 0))


def message(error: Exception, accelerator: Accelerator) -> str | int:
    """What ``sys.exit`` is to say: one message, from the process that knows."""
    match error:
        case OtherProcessError():
            return 1
        case NonFiniteLossError():  # every process's
            return f"error: {error}" if accelerator.is_main_process else 1
        case _:
            several = accelerator.num_processes > 1
            who = f"process {accelerator.process_index}: " if several else ""
            return f"error: {who}{error}"


def run(config: RunConfig, accelerator: Accelerator) -> TrainingResult:
    """Open the run, build its parts, say what will happen, and train."""
    check_distributed(accelerator)
    check_tracking(config.tracking)
    if not config.data.sources:
        raise ValueError(
            "data: expected at least one source (such as data.easy_vqa or data.interleaved), got "
            "none; experiment=quickstart has two"
        )
    directory = RunDirectory.open(config, write=False)
    if directory.finished and not directory.has_other_places:
        return already_finished(directory, accelerator)
    allow_open_files(config, accelerator.num_processes)
    documents = open_data(config.data)  # before minutes of loading weights
    directory.require_shards(shards_of(documents))
    if directory.finished:  # its shards were moved
        return already_finished(directory, accelerator)
    with directory.locked() if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            check_access(config.tracking)
        checkpoint = latest_checkpoint(directory.checkpoints)
        done = checkpoint.step if checkpoint else 0
        resume = checkpoint is not None
        with explaining(directory.checkpoints):  # the model may be too large for the device
            parts = build_parts(config, accelerator.device, documents, resume=resume)
        # The folder is this config's only now: what could not be built left nothing in it.
        directory = RunDirectory.open(config, write=accelerator.is_main_process)
        if accelerator.is_main_process:
            directory.record_launch(
                {
                    "vision": parts.model.config.vision_fingerprint,
                    "language": parts.model.config.language_fingerprint,
                },
                from_step=done,
                processes=accelerator.num_processes,
                device=str(accelerator.device),
                overrides=own_overrides(),
                **circumstances_of_launch(os.environ),
                precision=str(resolve_dtype(config.training.precision, accelerator.device)),
            )
            print(summary(config, directory, parts, accelerator, done))
        result = train(
            config,
            parts.model,
            parts.processor.tokenizer,
            parts.mixture,
            parts.load_media,
            directory,
            accelerator=accelerator,
            beside=[parts.processor],
            utilisation=run_utilisation(config, accelerator.device),
        )
    if result.finished:
        say(accelerator, f"{directory.path}: finished, {result.steps} steps are done.")
    return result


def already_finished(directory: RunDirectory, accelerator: Accelerator) -> TrainingResult:
    """Say so. What was trained on need not be there any more."""
    steps = directory.config.training.steps
    say(accelerator, f"{directory.path}: finished, {steps} steps are done.")
    return TrainingResult(steps, finished=True)


def say(accelerator: Accelerator, message: str) -> None:
    """Print on the main process alone."""
    if accelerator.is_main_process:
        print(message)


def summary(
    config: RunConfig, directory: RunDirectory, parts: Parts, accelerator: Accelerator, done: int
) -> str:
    """What trains, what is frozen, and what is about to happen."""
    training = config.training
    lines = [f"Run {directory.path}", ""]
    for part, (count, trains) in parameter_counts(parts.model).items():
        lines.append(f"  {part:<18}{count:>14,} parameters, {'trained' if trains else 'frozen'}")
    joint = " or " if config.data.mixing is Mixing.round_robin else ", "
    sources = joint.join(
        f"{source.sequences} {name}"
        for name, source in zip(parts.mixture.names, config.data.sources, strict=True)
    )
    dtype = str(resolve_dtype(training.precision, accelerator.device)).removeprefix("torch.")
    start = f"continues after step {done}" if done else "starts"
    shares = ", each with a share of the model" if is_sharded(training, accelerator) else ""
    lines += [
        "",
        f"  {start}; {training.steps} steps in all, each {sources} sequences",
        f"  {dtype} on {accelerator.num_processes} x {accelerator.device.type}{shares}; "
        f"a checkpoint every {training.checkpoint_every} steps",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    entry_point(
        main, folder=lambda config: config.directory, interrupted="The same command continues."
    )
    leave_processes()
