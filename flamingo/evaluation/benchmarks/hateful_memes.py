"""Hateful Memes: is a meme hateful? ROC-AUC of the probability of yes.

Kiela et al. 2020, "The Hateful Memes Challenge" (ai.meta.com/tools/hatefulmemes).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import (
    check_unique,
    image_ref,
    pair_answers,
    read_json_lines,
)
from flamingo.files import write_atomically

ANSWERS = ("no", "yes")
"""By label: 0 and 1."""


@dataclass(frozen=True, slots=True)
class _Meme:
    id: int
    img: str
    text: str
    label: Literal[0, 1] | None = None


def read_hateful_memes(annotations: Path, folder: Path) -> list[Example]:
    """The memes of ``train.jsonl``, ``dev_seen.jsonl``, ... or ``test_*.jsonl`` (no labels).

    ``folder`` is the one with ``img/``. The question is the text on the meme alone; what is asked
    about it belongs to the prompt. Images are keyed ``hateful_memes/42953``. Raises ``ValueError``
    for a malformed file.
    """
    examples = []
    for row in read_json_lines(annotations, _Meme):
        image = image_ref(f"hateful_memes/{PurePosixPath(row.img).stem}", folder, row.img)
        examples.append(
            Example(
                id=str(row.id),
                images=(image,),
                question=row.text,
                answers=() if row.label is None else (ANSWERS[row.label],),
                candidates=ANSWERS,
                cluster=image.key,
            )
        )
    return check_unique(examples, annotations)


def write_hateful_memes_submission(
    path: Path, examples: Sequence[Example], probabilities: Mapping[str, float]
) -> None:
    """``id,proba,label`` as CSV: the probability that a meme is hateful, and whether it is > 0.5.

    Raises ``ValueError`` unless there is exactly one probability in [0, 1], by id, for each.
    """
    rows = pair_answers(examples, probabilities)
    for example, probability in rows:
        if not 0 <= probability <= 1:
            raise ValueError(
                f"probability of {example.id!r}: expected between 0 and 1, got {probability}"
            )
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["id", "proba", "label"])
    writer.writerows([example.id, p, int(p > 0.5)] for example, p in rows)
    write_atomically(path, table.getvalue())
