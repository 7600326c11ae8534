"""The training loop.

A step is: this process's sequences in micro-batches, forward and backward each; gradients summed
over processes; clipping; one optimiser step. Sequences are a pure function of the step's index,
the learning rate too, and a checkpoint holds everything else that changes, so the same command
continues after any interruption, on CPU bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from flamingo.backbones.precision import resolve_dtype
from flamingo.config import RunConfig
from flamingo.data.collate import collate
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.structured import plain
from flamingo.training.agreement import Agreed, agree
from flamingo.training.batches import Step, Steps, StepSource, division_of, to_device
from flamingo.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    Saveable,
    latest_checkpoint,
    load_trained_weights,
    random_state,
    restore_random_state,
    save_checkpoint,
)
from flamingo.training.distributed import (
    broadcast_parameters,
    build_accelerator,
    check_distributed,
    sum_gradients,
    sum_over_processes,
)
from flamingo.training.even_work import EvenWork
from flamingo.training.failures import (
    Failed,
    OtherProcessError,
    all_or_none,
    explaining,
    last_good,
    until_failure,
)
from flamingo.training.gradients import gradient_norms
from flamingo.training.interrupt import StopRequest
from flamingo.training.loss import batch_loss, combine, token_weights
from flamingo.training.optim import build_optimizer, clip_gradients, lr_factor, set_lr
from flamingo.training.placement import place
from flamingo.training.positions import StreamPositions
from flamingo.training.sharding import (
    forget_unread_media,
    is_sharded,
    load_optimizer_state,
    whole_model,
    whole_optimizer_state,
)
from flamingo.training.timing import Timing, Utilisation
from flamingo.training.tracking import Tracker
from flamingo.training.validation import ValidationLoss
from flamingo.training.window import Window
from flamingo.types import MediaLoader

Callback = Callable[[int, FlamingoForConditionalGeneration], dict[str, float]]


@runtime_checkable
class RunFiles(Protocol):
    """What training needs of ``flamingo.run_directory.RunDirectory``."""

    @property
    def path(self) -> Path: ...
    @property
    def checkpoints(self) -> Path: ...
    @property
    def config_hash(self) -> str: ...


class NonFiniteLossError(RuntimeError):
    """The loss or a gradient is not a number; training stopped before it reached the weights."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """How training ended: steps done, and the signal that interrupted it, if one did."""

    steps: int
    finished: bool
    signal: int | None = None


def train(
    config: RunConfig,
    model: FlamingoForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    mixture: StepSource,
    load_media: MediaLoader,
    run: RunFiles,
    callback: Callback | None = None,
    *,
    accelerator: Accelerator | None = None,
    beside: Sequence[Saveable] = (),
    utilisation: Utilisation | None = None,
) -> TrainingResult:
    """Train ``model`` from the run's newest checkpoint, or from its weights as they are.

    ``callback(step, model)`` is called on every process each ``training.eval_every`` steps, in
    evaluation mode without gradients; what it returns is logged. By default it is the
    validation loss, with and without images. ``beside`` is saved into each checkpoint with the
    model (a processor). With ``utilisation`` operations a second and MFU are logged.

    SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C, to any process, end it on all of them after the running
    step with a checkpoint; so does what goes wrong with the data. Raises
    :class:`NonFiniteLossError`, :class:`flamingo.training.checkpoint.CheckpointError`,
    :class:`flamingo.training.failures.TrainingError`, and ``ValueError`` for a checkpoint of
    another config.
    """
    accelerator = accelerator or build_accelerator(config.training.timeout_minutes)
    check_distributed(accelerator)
    with explaining(run.checkpoints):
        return _Loop(
            config,
            model,
            tokenizer,
            mixture,
            load_media,
            run,
            callback,
            accelerator,
            beside,
            utilisation,
        ).run_steps()


class _Loop:
    """One call of :func:`train`: what it holds between steps."""

    def __init__(
        self,
        config: RunConfig,
        model: FlamingoForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        mixture: StepSource,
        load_media: MediaLoader,
        run: RunFiles,
        callback: Callback | None,
        accelerator: Accelerator,
        beside: Sequence[Saveable],
        utilisation: Utilisation | None,
    ) -> None:
        self.config, self.settings, self.run = config, config.training, run
        self.mixture, self.accelerator, self.beside = mixture, accelerator, beside
        self.model = model
        checkpoint = self._load_weights()
        place(model, self.settings, accelerator)
        self.sharded = is_sharded(self.settings, accelerator)
        pad_id = tokenizer.pad_token_id
        if not isinstance(pad_id, int):
            raise ValueError(f"tokenizer.pad_token_id: expected an id, got {pad_id!r}")
        self.data = Steps(
            mixture,
            partial(collate, pad_id=pad_id, load_media=load_media),
            division_of(self.settings),
            accelerator.process_index,
            accelerator.num_processes,
        )
        # A sharded model asks every process for the same calls.
        self.even = EvenWork.of(model, accelerator) if self.sharded else list
        self.parameters = self.model.trainable_parameters()
        self.dtype = resolve_dtype(self.settings.precision, accelerator.device)
        self.optimizer = build_optimizer(self.settings, self.model, self.parameters)
        self.window = Window()
        self.timing = Timing(accelerator, utilisation)
        self.positions = StreamPositions(mixture, accelerator)
        self.done = 0
        self.saved = -1
        """Step of the newest checkpoint. Processes must not look for it on a disk that may show
        each of them another state."""
        set_seed(self.config.seed, device_specific=True)
        if checkpoint is not None:
            self._resume(checkpoint)
        self.callback = callback
        if callback is None and self.settings.eval_every:
            batches = self.settings.eval_batches
            self.callback = ValidationLoss(
                mixture, self.data, accelerator, batches, load_media, self.even
            )

    # ------------------------------------------------------------------ state

    def _load_weights(self) -> Checkpoint | None:
        """The checkpoint to go on from, its weights in the model; without one, all processes start
        from the main one's."""
        checkpoint = latest_checkpoint(self.run.checkpoints)
        found = gather_object([-1 if checkpoint is None else checkpoint.step])
        if len(set(found)) > 1:
            raise ValueError(
                f"{self.run.checkpoints}: expected a folder that all processes share, got steps "
                f"{found} as the newest checkpoint of each (-1: none)"
            )
        if checkpoint is None:
            started = self.model.trainable_parameters().values()
            broadcast_parameters(list(started), self.accelerator)
            return None
        if checkpoint.config_hash != self.run.config_hash:
            raise ValueError(
                f"{checkpoint.path}: expected a checkpoint of this run's config "
                f"({self.run.config_hash}), got one of another ({checkpoint.config_hash})"
            )
        load_trained_weights(self.model, checkpoint)
        return checkpoint

    def _resume(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state()
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.window.restore(state["window"])
        self.positions.restore(state["streams"])
        if self.accelerator.process_index < len(state["random"]):
            restore_random_state(state["random"][self.accelerator.process_index])
        self.done = self.saved = checkpoint.step

    def _save(self, tracker: Tracker | None) -> None:
        random = gather_object([random_state()])
        streams = self.positions.state()
        main = tracker is not None
        model = whole_model(self.model, keep=main)
        optimizer = whole_optimizer_state(self.optimizer, keep=main)
        failure: Exception | None = None
        if tracker is not None:
            try:
                tracker.sync()
                self._write(model, optimizer, random, streams)
            except (CheckpointError, OSError) as error:
                failure = error
        # Nobody goes on before it is written, or without it.
        all_or_none(failure, self.accelerator, "the main process")
        self.saved = self.done

    def _write(
        self, model: Saveable, optimizer: Any, random: list[Any], streams: dict[str, Any]
    ) -> None:
        save_checkpoint(
            self.run.checkpoints,
            step=self.done,
            models=[model, *self.beside],
            state={
                "optimizer": optimizer,
                "window": self.window.state(),
                "random": random,
                "streams": streams,
            },
            config_hash=self.run.config_hash,
            keep=self.settings.keep_checkpoints,
        )

    # ------------------------------------------------------------------ the loop

    def run_steps(self) -> TrainingResult:
        total, start = self.settings.steps, self.done
        if start >= total:
            return TrainingResult(start, finished=True)
        with ExitStack() as stack:
            stop = stack.enter_context(StopRequest())
            tracker = self._open_tracker(stack)
            bar = stack.enter_context(
                tqdm(
                    desc="train",
                    unit="step",
                    total=total,
                    initial=start,
                    disable=tracker is None,
                    dynamic_ncols=True,
                )
            )
            steps = self.data.iterate(range(start, total), self.config.data.workers)
            self.model.train()
            began = time.perf_counter()
            for part in until_failure(steps):
                waited = time.perf_counter() - began
                # Counts and the wish to stop are agreed on before anyone starts the step.
                agreed = agree(part, stop, len(self.mixture.names), self.accelerator)
                if agreed.signal or agreed.failed:
                    self._save_if_new(tracker)
                if isinstance(part, Failed):
                    raise part.error
                if agreed.failed:
                    raise OtherProcessError("another process has no data: see its message")
                if agreed.signal:
                    return TrainingResult(self.done, finished=False, signal=agreed.signal)
                self.window.add(self._step(part, agreed))
                self.positions.add(part.cursors)
                self.done += 1
                now = time.perf_counter()
                self.timing.work.add(
                    tokens=agreed.tokens,
                    padded_tokens=agreed.padded_tokens,
                    images=agreed.images,
                    seconds=now - began,
                    waited=waited,
                    flops=self.timing.flops(part.micro_batches),
                )
                self._report(tracker, bar)
                began = time.perf_counter()  # evaluating and saving are not throughput
        return TrainingResult(self.done, finished=True)

    def _open_tracker(self, stack: ExitStack) -> Tracker | None:
        if not self.accelerator.is_main_process:
            return None
        return stack.enter_context(
            Tracker(
                self.run.path,
                self.config.tracking,
                name=f"{self.config.name}/seed={self.config.seed}",
                settings=plain(self.config),
                step=self.done,
            )
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.accelerator.device.type,
            self.dtype,
            enabled=self.dtype is not torch.float32,
            cache_enabled=not self.sharded,  # its copies would outlive the units they are of
        )

    def _step(self, part: Step, agreed: Agreed) -> dict[str, float]:
        """One optimiser step; returns its numbers."""
        names, counts = self.mixture.names, agreed.learned
        if int(counts.sum()) == 0:
            raise ValueError(
                f"training step {self.done}: expected text to learn in the sequences of "
                f"{', '.join(names)}, got none"
            )
        sums = self._gradients(part, agreed)
        norms = gradient_norms(self.parameters)
        norm = clip_gradients(self.parameters.values(), self.settings.clip_norm).item()
        numbers = loss_numbers(names, sums, counts, self.mixture.loss_weights)
        # Loss and norm are sums over all processes: every one of them stops here, or none.
        self._require_finite(numbers, norm)
        lr = self.settings.lr * lr_factor(self.done, self.settings)
        set_lr(self.optimizer, lr)
        self.optimizer.step()
        numbers |= {f"train/gradient_norm/{group}": value for group, value in norms.items()}
        return numbers | {"train/gradient_norm": norm, "train/lr": lr}

    def _gradients(self, part: Step, agreed: Agreed) -> Float[Tensor, " source"]:
        """Gradients of the whole step, in the parameters; returns each source's summed loss."""
        self.optimizer.zero_grad(set_to_none=True)
        weights = token_weights(agreed.learned, self.mixture.loss_weights)
        sums = torch.zeros(len(weights), device=self.accelerator.device)
        for batch in self.even(part.micro_batches):
            with self._autocast():
                share, batch_sums = batch_loss(
                    self.model, to_device(batch, self.accelerator.device), weights
                )
            share.backward()
            del share  # it holds gradients of the head's inputs
            sums += batch_sums
        sums = sum_over_processes(sums, self.accelerator)
        sum_gradients(list(self.parameters.values()), self.accelerator)
        if self.sharded and agreed.images == 0:
            forget_unread_media(self.model)
        return sums

    def _require_finite(self, numbers: dict[str, float], norm: float) -> None:
        loss = numbers["train/loss"]
        if math.isfinite(loss) and math.isfinite(norm):
            return
        prefix = "train/loss/"
        values = ", ".join(
            f"{name.removeprefix(prefix)} {value:.4g}"
            for name, value in numbers.items()
            if name.startswith(prefix)
        )
        raise NonFiniteLossError(
            f"training step {self.done + 1}: expected a finite loss and gradient, got loss "
            f"{loss:.4g} ({values}) and gradient norm {norm:.4g}. The weights were not changed by "
            f"this step; {last_good(self.run.checkpoints)}. A lower training.lr or a longer "
            "training.warmup_steps may help."
        )

    def _report(self, tracker: Tracker | None, bar: tqdm) -> None:
        """After a step: the bar, and when they are due log entry, callback and checkpoint."""
        settings, last = self.settings, self.done == self.settings.steps
        loss = self.window.means()["train/loss"]
        bar.set_postfix({"loss": f"{loss:.3f}"} | self.timing.bar(), refresh=False)
        bar.update()
        entry: dict[str, float] = {}
        if self.done % settings.log_every == 0 or last:
            entry |= self.window.flush() | self.timing.flush()
            entry |= self._gates() | self.positions.documents()
        if self.callback and settings.eval_every and (self.done % settings.eval_every == 0 or last):
            entry |= self._call_back(self.callback)
        if entry and tracker is not None:
            tracker.log(self.done, entry)
        if self.done % settings.checkpoint_every == 0 or last:
            self._save(tracker)

    def _call_back(self, callback: Callback) -> dict[str, float]:
        self.model.eval()
        try:
            with torch.no_grad(), self._autocast():
                return callback(self.done, self.model)
        finally:
            self.model.train()

    def _gates(self) -> dict[str, float]:
        return {f"gate/{name}": value for name, value in self.model.gates().items()}

    def _save_if_new(self, tracker: Tracker | None) -> None:
        if self.saved != self.done:
            self._save(tracker)


def loss_numbers(
    names: Sequence[str],
    sums: Float[Tensor, " source"],
    counts: Int[Tensor, " source"],
    weights: Sequence[float],
) -> dict[str, float]:
    """The loss of a step, and of each source that has tokens to learn, from summed losses."""
    means = (sums / counts.clamp(min=1)).tolist()
    own = {
        f"train/loss/{name}": mean
        for name, mean, count in zip(names, means, counts.tolist(), strict=True)
        if count
    }
    return {"train/loss": combine(sums, counts, weights).item(), **own}
