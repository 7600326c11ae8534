"""Predictions on disk: one JSON line each, appended as they come, never rewritten."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer and all that it depends on. ``key`` tells whether it still holds.

    ``target`` is the reference that a demonstration would show, ``references`` are all of them,
    none where the annotation is missing. ``score`` is None there, and where it depends on the other
    answers (CIDEr).
    """

    key: str
    model: str
    query: str
    shots: int
    demonstrations: list[str]
    prompt_hash: str
    prompt: str
    candidates: list[str]
    raw: str
    answer: str
    target: str
    probability: float
    score: float | None
    group: str
    cluster: str
    references: list[str] = field(default_factory=list)


def prediction_key(
    model: str, query: str, shots: int, prompt_hash: str, target: str, decoding: str
) -> str:
    """16 hex digits of everything that matters for a prediction.

    ``model`` identifies the weights, ``decoding`` how they are used. The benchmark and the
    condition are those of the file.
    """
    content = json.dumps([model, query, shots, prompt_hash, target, decoding])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class PredictionFile:
    """``predictions/<benchmark>/<condition>.jsonl``.

    Opening drops a torn last line (a process was killed while writing). Raises ``ValueError``
    naming file and line if any other line is not a prediction.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_key: dict[str, Prediction] = {}
        if not path.exists():
            return
        content = path.read_bytes()
        *lines, torn = content.split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                prediction = Prediction(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: expected a prediction, got {line[:60]!r}"
                ) from error
            self.by_key[prediction.key] = prediction
        if torn:
            with path.open("r+b") as file:
                file.truncate(len(content) - len(torn))

    def append(self, predictions: list[Prediction]) -> None:
        """Write complete lines and hand them to the system at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(asdict(p)) + "\n" for p in predictions))
        self.by_key |= {prediction.key: prediction for prediction in predictions}
