"""Write a run's model for others: weights, processor and a card with its results, in one folder.

    python experiments/publish.py run=runs/quickstart/seed=0 to=published
    python experiments/publish.py run=... to=published include_backbones=true license=apache-2.0
    python experiments/publish.py run=... to=published push_to=user/name private=true

The folder must be new or empty. What is in it is read by from_pretrained, transformers' Auto
classes and its pipelines; without include_backbones it names the frozen backbones, which are then
loaded by name. The card (README.md) says what the model is, what it was trained on and what its
evaluation gave.

push_to= uploads the folder to the Hugging Face hub, with the login of `hf auth login` or $HF_TOKEN.
A card there that somebody edited is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from flamingo.command_line import entry_point
from flamingo.publication import publish
from flamingo.runs import load_run


@dataclass(kw_only=True)
class PublishConfig:
    """Which run is written where."""

    run: str = MISSING
    """The run's directory."""
    to: str = MISSING
    """The folder that is written: new, or empty."""
    step: int | None = None
    """Of the checkpoint; default: the newest."""
    include_backbones: bool = False
    """Write the frozen backbones too."""
    license: str | None = None
    """An identifier of the hub's list, for the card."""
    push_to: str | None = None
    """A repository of the Hugging Face hub, user/name."""
    private: bool | None = None
    """Whether a new repository is private; default: as the hub does."""

    def __post_init__(self) -> None:
        if self.private is not None and self.push_to is None:
            raise ValueError(
                f"private: expected push_to= with it, got private={self.private} alone"
            )


def main(config: PublishConfig) -> None:
    """Write, upload if told, and say what was done."""
    said = publish(
        load_run(config.run),
        Path(config.to),
        step=config.step,
        include_backbones=config.include_backbones,
        license=config.license,
        push_to=config.push_to,
        private=config.private,
    )
    print(said)


if __name__ == "__main__":
    entry_point(main, PublishConfig, "publish", verbatim=["run", "to", "push_to"])
