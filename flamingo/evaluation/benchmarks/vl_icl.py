"""VL-ICL Bench: tasks that only the demonstrations explain.

Zong et al. 2025, "VL-ICL Bench: The Devil in the Details of Multimodal In-Context Learning"
(github.com/ys-zong/VL-ICL; the data: huggingface.co/datasets/ys-zong/VL-ICL). ``{task}/query.json``
and ``{task}/support.json`` name images relative to the benchmark's folder. All answers are public.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flamingo.choices import VLICLTask
from flamingo.evaluation.benchmarks.examples import Example
from flamingo.evaluation.benchmarks.files import image_ref, read_json_records

OPERATORS = ("+", "-", "x")
"""In the order of the answers of a demonstration of operator induction."""


@dataclass(frozen=True, slots=True)
class VLICL:
    """The queries of a task and what may demonstrate them.

    ``pools`` holds for each query, by id, the ids of its ``support``: one group of ids from which
    any may be shown, or (open_mi) one group a class, the classes in the order of the file, of which
    the query's own is one. The official protocol shows two classes: the query's and a random other.
    """

    queries: list[Example]
    support: list[Example]
    pools: Mapping[str, tuple[tuple[str, ...], ...]]


@dataclass(frozen=True, slots=True)
class _ClassSupport:
    images: list[str]


@dataclass(frozen=True, slots=True)
class _BindingQuery:
    image: str | list[str]
    question: str
    answer: str
    classes: list[str]
    support: dict[str, _ClassSupport]


@dataclass(frozen=True, slots=True)
class _OperatorSupport:
    image: str | list[str]
    question: str
    answer: list[int]


@dataclass(frozen=True, slots=True)
class _Item:
    image: str | list[str]
    question: str
    answer: int | str


@dataclass(frozen=True, slots=True)
class _OperatorQuery(_Item):
    operator: str


def read_vl_icl(folder: Path, task: VLICLTask) -> VLICL:
    """One task of the benchmark's ``folder`` (the one that holds a folder for each task).

    Queries are ``query/{place}``, their demonstrations ``support/{place}``; of operator induction
    ``support/{place}/{operator}``, one for each meaning of ``?``; of open_mi, where each query
    brings its own, ``query/{place}/{class}/{number}``. The group is the operator where there is
    one. Numbers become text, and images are keyed ``vl_icl/{path}``. open_mi's ``candidates`` are
    all classes of the query. Its ``support.json`` is not read: the official protocol does not
    either.

    Raises ``ValueError`` for a malformed file, an unknown operator, and an answer that is none of
    the query's classes or has no demonstrations.
    """
    own = folder / task.value
    match task:
        case VLICLTask.open_mi:
            return _open_mi(folder, own / "query.json")
        case VLICLTask.operator_induction:
            return _operator_induction(folder, own / "query.json", own / "support.json")
        case VLICLTask.clevr | VLICLTask.textocr:
            queries = _items(folder, own / "query.json", "query")
            support = _items(folder, own / "support.json", "support")
            pool = (tuple(example.id for example in support),)
            return VLICL(queries, support, dict.fromkeys((q.id for q in queries), pool))


def _items(folder: Path, file: Path, kind: str) -> list[Example]:
    return [
        _example(folder, f"{kind}/{place}", row.image, row.question, str(row.answer))
        for place, row in enumerate(read_json_records(file, _Item))
    ]


def _operator_induction(folder: Path, query: Path, support: Path) -> VLICL:
    shown = []
    for place, row in enumerate(read_json_records(support, _OperatorSupport)):
        if len(row.answer) != len(OPERATORS):
            raise ValueError(
                f"{support}: [{place}].answer: expected one number for each of {OPERATORS}, "
                f"got {row.answer}"
            )
        for operator, answer in zip(OPERATORS, row.answer, strict=True):
            name = f"support/{place}/{operator}"
            shown.append(
                _example(folder, name, row.image, row.question, str(answer), group=operator)
            )
    by_operator = {o: (tuple(e.id for e in shown if e.group == o),) for o in OPERATORS}
    queries = []
    for place, row in enumerate(read_json_records(query, _OperatorQuery)):
        if row.operator not in OPERATORS:
            raise ValueError(
                f"{query}: [{place}].operator: expected one of {OPERATORS}, got {row.operator!r}"
            )
        name, answer = f"query/{place}", str(row.answer)
        queries.append(_example(folder, name, row.image, row.question, answer, group=row.operator))
    return VLICL(queries, shown, {q.id: by_operator[q.group] for q in queries})


def _open_mi(folder: Path, query: Path) -> VLICL:
    queries, support, pools = [], [], {}
    for place, row in enumerate(read_json_records(query, _BindingQuery)):
        where, name = f"{query}: [{place}]", f"query/{place}"
        if row.answer not in row.classes:
            raise ValueError(
                f"{where}.answer: expected one of its classes {row.classes}, got {row.answer!r}"
            )
        without = [label for label in row.classes if label not in row.support]
        if without:
            raise ValueError(f"{where}.support: expected images of {without[0]!r}, found none")
        queries.append(
            _example(folder, name, row.image, row.question, row.answer, candidates=row.classes)
        )
        pool = []
        for label in row.classes:
            shown = [
                _example(folder, f"{name}/{label}/{number}", image, row.question, label)
                for number, image in enumerate(row.support[label].images)
            ]
            support += shown
            pool.append(tuple(example.id for example in shown))
        pools[name] = tuple(pool)
    return VLICL(queries, support, pools)


def _example(
    folder: Path,
    name: str,
    image: str | list[str],
    question: str,
    answer: str,
    *,
    candidates: Sequence[str] = (),
    group: str = "",
) -> Example:
    paths = [image] if isinstance(image, str) else image
    refs = tuple(image_ref(f"vl_icl/{path}", folder, path) for path in paths)
    return Example(
        id=name,
        images=refs,
        question=question,
        answers=(answer,),
        candidates=tuple(candidates),
        group=group,
        cluster=refs[0].key if refs else "",
    )
