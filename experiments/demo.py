"""A page in the browser to ask a trained run: demonstrations, a question, the answer and why.

    python experiments/demo.py run=runs/quickstart/seed=0
    python experiments/demo.py run=runs/quickstart/seed=0 port=8000 limits.demonstrations=4

The answer is the one that experiments/ask.py gives: decoded as the run's evaluation decodes answers
to questions about images, greedily unless its evaluation.protocol or evaluation.beams say
otherwise, or the likeliest of the candidates. Beside it stand the alternatives= likeliest answers
that beam search finds, of which one can be likelier than a greedy answer.

Needs gradio (pip install -e '.[demo]'). The page is served to this machine alone; host=0.0.0.0
serves it to everyone who can reach the machine, without a password. Ctrl-C ends it, and removes
what was uploaded.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING

from flamingo.asking import Respondent, open_respondent
from flamingo.backbones.seen import seen_image
from flamingo.command_line import entry_point
from flamingo.demo.answering import Answered, Shown, answer
from flamingo.demo.form import Limits
from flamingo.demo.gradio_settings import gradio_settings, require_gradio
from flamingo.runs import load_run


@dataclass(kw_only=True)
class DemoConfig:
    """Which run answers, where the page is served, and what is taken from visitors."""

    run: str = MISSING
    """The run's directory."""
    step: int | None = None
    """Of the checkpoint; default: the newest."""
    host: str = "127.0.0.1"
    """Address to serve on; the default is reached from this machine alone."""
    port: int = 7860
    alternatives: int = 5
    """Beams that are searched for what else might be said to an open question."""
    max_new_tokens: int | None = None
    """Of an open answer; default: as in the run's evaluation (10, unless it says otherwise)."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ValueError(f"port: expected a number from 1 to 65535, got {self.port}")
        for name in ("alternatives", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected >= 1, got {value}")
        if not self.host.strip():
            raise ValueError(f"host: expected an address, got {self.host!r}")


def main(config: DemoConfig) -> None:
    """Serve until Ctrl-C. Raises ``ValueError`` or ``OSError`` for what cannot be served."""
    require_gradio()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio looks whether its page is there
    run = load_run(config.run)
    respondent = open_respondent(run, config.step, max_new_tokens=config.max_new_tokens)
    with tempfile.TemporaryDirectory(prefix="flamingo-demo-") as uploads:
        settings = gradio_settings(os.environ, Path(uploads))
        os.environ.clear()
        os.environ.update(settings)
        from flamingo.demo.page import build_page, serve  # reads its environment when imported

        page = build_page(
            f"{run.config.name}, seed {run.config.seed}",
            asking(respondent, config),
            lambda image: seen_image(respondent.encoder, image),
            config.limits,
        )
        url = serve(page, host=config.host, port=config.port, limits=config.limits)
        print(f"Open {url} in a browser. Ctrl-C ends it.", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        page.close(verbose=False)


def asking(respondent: Respondent, config: DemoConfig) -> Callable[..., Answered]:
    """``answer`` by ``respondent``, one question at a time."""
    one = threading.Lock()

    def ask(
        demonstrations: tuple[Shown, ...], query: Shown, candidates: tuple[str, ...]
    ) -> Answered:
        with one:
            return answer(
                respondent,
                demonstrations,
                query,
                candidates=candidates,
                alternatives=config.alternatives,
            )

    return ask


if __name__ == "__main__":
    entry_point(main, DemoConfig, "demo", verbatim=["run", "host"])
