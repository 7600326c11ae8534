"""Convert a published model to a run of ours, or a model of ours to OpenFlamingo's format.

    python experiments/convert.py source=open_flamingo checkpoint=/models/checkpoint.pt \\
        experiment=openflamingo_3b vision.name=/models/clip language.name=/models/mpt-1b
    python experiments/convert.py source=idefics checkpoint=/models/idefics-9b name=idefics_9b
    python experiments/convert.py source=flamingo checkpoint=runs/mine/seed=0 \\
        target=open_flamingo to=checkpoint.pt

Published models become a run in <runs>/<name>/seed=<seed>, which experiments/evaluate.py and
load_run open as any other. What went where is printed, and written beside the result as
conversion.json. Tensors are copied one by one: beside the model itself no second copy is held.

The result is opened again and must give the logits of one prompt (sample.text, sample.image) bit
for bit. Before that, what came from OpenFlamingo must turn back into the file's own tensors, and
what came from IDEFICS must give the logits of transformers' own model. What was interrupted or
fails a check has not become a run, nor the file of to=, and the same command does it again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

from omegaconf import MISSING

from flamingo.choices import ModelFormat
from flamingo.command_line import entry_point
from flamingo.config import RunConfig, config_to_yaml
from flamingo.files import write_atomically
from flamingo.interop.check import Sample, check_equal, next_tokens, sample_logits
from flamingo.interop.conversion import Converted, from_idefics, from_open_flamingo, from_ours
from flamingo.interop.open_flamingo import load_open_flamingo
from flamingo.interop.open_flamingo_export import save_open_flamingo
from flamingo.interop.report import Report
from flamingo.interop.tokens import TokenIds
from flamingo.model.auto import FlamingoForConditionalGeneration
from flamingo.run_directory import RunDirectory
from flamingo.sweeps import own_overrides
from flamingo.training.checkpoint import CheckpointError, complete_checkpoints, save_checkpoint


@dataclass(kw_only=True)
class SampleConfig:
    """The prompt that logits are compared on."""

    text: str = "<image>An image of"
    image: str | None = None
    """A file; default: a gradient from black to white."""


@dataclass(kw_only=True)
class ConvertConfig(RunConfig):
    """What is converted, and the run that it becomes."""

    name: str = "converted"
    source: ModelFormat = MISSING
    checkpoint: str = MISSING
    """OpenFlamingo: a .pt or .safetensors file (Otter: its folder). IDEFICS: a folder or hub name.
    Ours: a run or a saved model."""
    target: ModelFormat = ModelFormat.flamingo
    to: str | None = None
    """For target=open_flamingo: the file to write, .pt or .safetensors."""
    image_token_id: int | None = None
    """For source=open_flamingo; default: as OpenFlamingo extends the language model's tokenizer."""
    end_of_chunk_token_id: int | None = None
    """Likewise."""
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        to_open_flamingo = self.target is ModelFormat.open_flamingo
        if self.target is ModelFormat.idefics or self.target is self.source:
            raise ValueError(
                "target: expected flamingo or open_flamingo, and another format than source, got "
                f"source={self.source.value}, target={self.target.value}"
            )
        if to_open_flamingo != (self.to is not None):
            raise ValueError(
                f"to: expected a file, got {self.to}, with target=open_flamingo"
                if to_open_flamingo
                else f"to: expected none with target={self.target.value} (a run is written to "
                f"<runs>/<name>/seed=<seed>), got {self.to}"
            )
        if self.to is not None and Path(self.to).suffix not in (".pt", ".safetensors"):
            raise ValueError(f"to: expected a file .pt or .safetensors, got {self.to}")
        if (self.image_token_id is None) != (self.end_of_chunk_token_id is None):
            raise ValueError(
                "image_token_id, end_of_chunk_token_id: expected both or neither, got "
                f"{self.image_token_id} and {self.end_of_chunk_token_id}"
            )

    @property
    def tokens(self) -> TokenIds | None:
        if self.image_token_id is None or self.end_of_chunk_token_id is None:
            return None
        return TokenIds(end_of_chunk=self.end_of_chunk_token_id, image=self.image_token_id)

    @property
    def run(self) -> RunConfig:
        """The settings of the run alone."""
        return RunConfig(**{own.name: getattr(self, own.name) for own in fields(RunConfig)})


def main(config: ConvertConfig) -> None:
    """Convert, check, and say what went where, or end the process with a message."""
    try:
        print(convert(config))
    except CheckpointError as error:
        sys.exit(f"error: {error}")


def convert(config: ConvertConfig) -> str:
    """Do it; returns what is to be printed.

    Raises ``ValueError``, ``OSError`` or :class:`CheckpointError`.
    """
    check_checkpoint(config)
    sample = Sample.read(config.sample.text, config.sample.image)
    write = prepared(config)
    made = read(config, sample)
    logits = sample_logits(made.model, made.processor, sample)
    checks = [] if made.check is None else [made.check(logits)]
    moves, notes, processor = made.moves, made.notes, made.processor
    written = write(made)
    place = written.place
    del made  # what trains is not held twice
    checks.append(check_equal(logits, sample_logits(written.reopen(), processor, sample), place))
    report = Report(config.checkpoint, str(place), moves, notes, checks)
    told = place / "conversion.json"
    if not place.is_dir():
        told = place.with_name(f"{place.name}.conversion.json")
    write_atomically(told, json.dumps(report.plain(), indent=1) + "\n")
    written.finish()
    likely = f"{config.sample.text!r} goes on with {next_tokens(logits, processor)}"
    return f"{report.text()}\n{likely}\nWhat went where: {told}"


def check_checkpoint(config: ConvertConfig) -> None:
    """Raise ``ValueError`` for a checkpoint that is not there, before any backbone is loaded."""
    path = Path(config.checkpoint)
    if config.source is ModelFormat.open_flamingo and not path.exists():
        raise ValueError(f"checkpoint: expected a .pt or .safetensors file, found none at {path}")
    ours = config.source is ModelFormat.flamingo
    if (path.is_absolute() or (ours and len(path.parts) > 2)) and not path.exists():
        raise ValueError(f"checkpoint: expected a folder or a hub name, found nothing at {path}")
    if seeds := sorted(p.parent.name for p in path.glob("seed=*/config.yaml")):
        raise ValueError(f"checkpoint: expected one of the runs {seeds} in {path}")
    if config.sample.image is not None and not Path(config.sample.image).is_file():
        raise ValueError(f"sample.image: expected a file, found none at {config.sample.image}")


def read(config: ConvertConfig, sample: Sample) -> Converted:
    """The model that is converted."""
    match config.source:
        case ModelFormat.open_flamingo:
            return from_open_flamingo(config.run, config.checkpoint, config.tokens)
        case ModelFormat.idefics:
            return from_idefics(config.run, config.checkpoint, sample)
        case ModelFormat.flamingo:
            return from_ours(config.run, config.checkpoint)


@dataclass(frozen=True)
class Written:
    """The target on disk, to be checked."""

    place: Path
    reopen: Callable[[], FlamingoForConditionalGeneration]
    finish: Callable[[], None] = lambda: None
    """Makes it what other programs open."""


def prepared(config: ConvertConfig) -> Callable[[Converted], Written]:
    """What writes the target.

    Raises ``ValueError`` if there is something in that place.
    """
    if config.to is not None:
        file = Path(config.to)
        if file.exists():
            raise ValueError(f"to: expected no such file yet, found {file}; it is left as it is")
        return partial(write_open_flamingo, file)
    directory = RunDirectory(config.directory, config.run)
    trained = [c for c in complete_checkpoints(directory.checkpoints) if c.step > 0]
    if directory.config_file.exists() or trained:
        raise ValueError(
            f"name: expected a run that is not there yet, found {config.directory}; it is left as "
            "it is"
        )
    return write_run


def write_run(made: Converted) -> Written:
    """A run with one checkpoint, of step 0.

    Its ``config.yaml``, without which it is no run, comes last.
    """
    directory = RunDirectory(made.run.directory, made.run)
    fingerprints = {
        "vision": made.model.config.vision_fingerprint,
        "language": made.model.config.language_fingerprint,
    }
    checkpoint = save_checkpoint(
        directory.checkpoints,
        step=0,
        models=[made.model, made.processor],
        state={},
        config_hash=directory.config_hash,
        keep=1,
    )
    backbones = made.model.detach_language_model(), made.model.vision_encoder

    def reopen() -> FlamingoForConditionalGeneration:
        language, encoder = backbones
        return FlamingoForConditionalGeneration.from_pretrained(
            checkpoint.path, language_model=language, vision_encoder=encoder
        )

    def finish() -> None:
        directory.record_launch(fingerprints, overrides=own_overrides())
        write_atomically(directory.config_file, config_to_yaml(directory.config))

    return Written(directory.path, reopen, finish)


def write_open_flamingo(file: Path, made: Converted) -> Written:
    """OpenFlamingo's file of what trains, under another name until it is checked."""
    unchecked = file.with_name(f"{file.stem}.unchecked{file.suffix}")
    unchecked.unlink(missing_ok=True)  # of a conversion that did not end
    every = save_open_flamingo(made.model, unchecked)
    tokens = made.model.config.image_token_id, made.model.config.end_of_chunk_token_id
    backbones = made.model.detach_language_model(), made.model.vision_encoder

    def reopen() -> FlamingoForConditionalGeneration:
        (language, encoder), (image, end_of_chunk) = backbones, tokens
        assert image is not None and end_of_chunk is not None
        return load_open_flamingo(
            unchecked,
            language_model=language,
            vision_encoder=encoder,
            cross_attn_every_n_layers=every,
            image_token_id=image,
            end_of_chunk_token_id=end_of_chunk,
        )

    return Written(file, reopen, lambda: os.replace(unchecked, file))


if __name__ == "__main__":
    entry_point(main, ConvertConfig, verbatim=["checkpoint", "to", "sample.text", "sample.image"])
