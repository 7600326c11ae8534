"""experiments/evaluate.py and ask.py on a run of tiny backbones."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments import ask, evaluate
from flamingo import evaluation_run
from flamingo.asking import open_respondent
from flamingo.composition import CONF, checked_overrides, compose
from flamingo.config import RunConfig
from flamingo.demo.answering import Shown, answer
from flamingo.evaluation.plans import read_plans
from flamingo.evaluation.prompts import QUESTION, prompt, prompt_text
from flamingo.run_directory import RunDirectory
from flamingo.runs import load_run
from flamingo.testing import draw
from tests.tiny_world import save_classes, save_untrained_run, save_world

ROOT = CONF.parent
SETTINGS = [
    "evaluation.shots=[0,1]",
    "evaluation.easy_vqa.queries=4",
    "evaluation.binding.queries=3",
    "evaluation.binding.ways=[2]",
    "evaluation.binding.views=3",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = save_world(tmp_path_factory.mktemp("world"))
    save_classes(folder / "photos", views=3)
    draw("red", "circle", 0).save(folder / "query.png")
    return folder


@pytest.fixture(scope="module")
def run(world: Path) -> Path:
    return save_untrained_run(world, "tiny", "model.cross_attention.gate_init=1.0", *SETTINGS)


def environment(world: Path) -> dict[str, str]:
    return os.environ | {
        "FLAMINGO_CACHE": str(world / "cache"),
        "PYTHONPATH": str(ROOT),
        "CUDA_VISIBLE_DEVICES": "",
    }


def start(script: str, world: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "experiments" / f"{script}.py"), *arguments]
    return subprocess.run(
        command, env=environment(world), cwd=world, capture_output=True, text=True
    )


@pytest.fixture(autouse=True)
def tiny_assets(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMINGO_CACHE", str(world / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(world)


@pytest.fixture(scope="module")
def printed(world: Path, run: Path) -> str:
    """What the first evaluation prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAMINGO_CACHE", str(world / "cache"))
        patch.setattr(torch.cuda, "is_available", lambda: False)
        return evaluate.evaluate(load_run(run))


def test_an_evaluation_prints_a_table_and_leaves_results_and_a_report(
    run: Path, printed: str
) -> None:
    # easy-VQA: 4 queries x (0: real, blank; 1: real, blank); 2 x binding: 3 x (2 + 3).
    assert "\n46 new predictions." in printed
    assert printed.startswith("| benchmark ")
    for text in ("easy-VQA", "Emoji, held-out concepts, 2 ways", "query image blanked"):
        assert text in printed
    assert f"Report: {run / 'report' / 'index.html'}" in printed
    assert (run / "report" / "index.html").stat().st_size > 10_000
    assert (run / "report" / "shots.png").exists()
    reopened = load_run(run)
    assert len(reopened.predictions()) == 46
    results = reopened.results
    assert results["step"] == 7
    assert [b["name"] for b in results["benchmarks"]] == [
        "easy_vqa",
        "twemoji_seen_2_ways",
        "twemoji_held_out_2_ways",
    ]
    assert {row["condition"] for row in results["baselines"]} == {
        "majority",
        "last",
        "nearest_question",
        "prior",
        "chance",
        "centroid",
    }
    json.loads((run / "results.json").read_text(), parse_constant=pytest.fail)  # no NaN


def test_done_again_it_says_so_opens_nothing_and_changes_nothing(
    run: Path, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("it is done, yet something is loaded")

    for name in ("load_model", "load_tokenizer", "load_vision_encoder", "build_benchmarks"):
        monkeypatch.setattr(evaluation_run, name, never)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    again = evaluate.evaluate(load_run(run))
    assert "Everything is evaluated already." in again
    assert f"remove {run / 'results.json'} to have it evaluated anew" in again
    assert again.split("\n\n")[0] == printed.split("\n\n")[0]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_report_that_was_lost_is_written_again_without_the_model(
    run: Path, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("nothing is to be predicted, yet the model is loaded")

    monkeypatch.setattr(evaluation_run, "load_model", never)
    results = load_run(run).results
    (run / "report" / "index.html").unlink()
    assert "\n0 new predictions." in evaluate.evaluate(load_run(run))
    assert (run / "report" / "index.html").exists()
    assert load_run(run).results["model"] == results["model"]
    assert load_run(run).results["baselines"] == results["baselines"]


def test_more_is_evaluated_on_top(world: Path, run: Path, printed: str) -> None:
    more = evaluate.evaluate(
        load_run(run),
        None,
        [
            f"run='{run}'",
            "evaluation.easy_vqa.queries=5",
            "evaluation.batch_size=3",
            f"evaluation.folder.path={world / 'photos'}",
            "evaluation.folder.ways=[2]",
            "evaluation.folder.queries=2",
            "evaluation.folder.shots=[1,4]",
        ],
    )
    # One more question under 4 conditions; 2 episodes under 3; the rest is there.
    assert "\n10 new predictions." in more
    assert "Not run: folder_photos_2_ways at 4 shots" in more


def forget(run: Path) -> None:
    """All evaluations of a run but the predictions."""
    for name in ("results.json", "cells.jsonl"):
        (run / name).unlink(missing_ok=True)
    for name in ("evaluations", "plans", "report"):
        shutil.rmtree(run / name, ignore_errors=True)


def test_earlier_evaluations_are_kept_and_found_again(
    world: Path, run: Path, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(run)
    own, fewer = [], ["evaluation.shots=[0]", "evaluation.binding=null"]
    evaluate.evaluate(load_run(run), None, own)
    before = load_run(run).results
    report = (run / "report" / "index.html").read_bytes()
    assert "\n0 new predictions." in evaluate.evaluate(load_run(run), None, fewer)
    assert {row["shots"] for row in load_run(run).results["model"]} == {0}

    kept = [
        folder
        for folder in (run / "evaluations").iterdir()
        if json.loads((folder / "results.json").read_text()) == before
    ]
    assert len(kept) == 1
    assert (kept[0] / "report" / "index.html").read_bytes() == report
    assert (kept[0] / "report" / "shots.png").exists()

    judge_otherwise(run)
    refuse_models(monkeypatch, "load_model")
    again = evaluate.evaluate(load_run(run), None, [*own, "evaluation.batch_size=1"])
    assert "\n0 new predictions." in again
    assert again.split("\n\n")[0] == printed.split("\n\n")[0]
    assert f"Report: {run / 'report' / 'index.html'}" in again
    newest = load_run(run).results
    assert newest | {"timing": None} == before | {"timing": None}, "asked for last, it is read"
    counted = load_run(run).episodes(counted=True)
    assert "other" not in set(counted["group"]) and set(counted["score"]) <= {0.0, 1.0}
    for told in ("\n0 new predictions.", "Everything is evaluated already."):
        assert told in evaluate.evaluate(load_run(run), None, fewer)
        assert {row["shots"] for row in load_run(run).results["model"]} == {0}
    assert len(list((run / "evaluations").iterdir())) == 1, "the other one, and no empty folder"


def judge_otherwise(run: Path) -> None:
    """Leave the predictions as an evaluation by another metric and other groups would."""
    for file in (run / "predictions").rglob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        write_lines(file, [*rows, *(row | {"score": 0.5, "group": "other"} for row in rows)])


def test_predictions_that_were_removed_are_made_again(copy: Path) -> None:
    evaluate.evaluate(load_run(copy))
    shutil.rmtree(copy / "predictions" / "easy_vqa")
    assert "\n16 new predictions." in evaluate.evaluate(load_run(copy))
    assert not load_run(copy).predictions("easy_vqa", counted=True).empty


def test_a_second_evaluation_of_the_run_is_refused_while_one_goes_on(
    run: Path, printed: str
) -> None:
    other = ["evaluation.shots=[1]", "evaluation.binding=null"]
    with load_run(run).directory.locked_for_evaluation():
        with pytest.raises(ValueError, match="no other evaluation of this run, but one is going"):
            evaluate.evaluate(load_run(run), None, other)
        with load_run(run).directory.locked():
            pass  # training is another matter
    assert "\n0 new predictions." in evaluate.evaluate(load_run(run), None, other)


def test_overrides_change_the_run_s_own_settings_alone(run: Path) -> None:
    config = load_run(run).config
    changed = evaluate.with_overrides(config, ["run=x", "evaluation.easy_vqa=null"])
    assert changed.evaluation.easy_vqa is None
    assert changed.evaluation.shots == [0, 1], "the run's, not the default"
    assert changed.training == config.training
    with pytest.raises(ValueError, match="increasing shot counts"):
        evaluate.with_overrides(config, ["evaluation.shots=[2,1]"])


def test_where_files_of_a_benchmark_are_missing_it_is_said_which_key_says_where_they_are(
    run: Path,
) -> None:
    typed = ["benchmark=vqav2", "data_root=elsewhere/"]
    missing = r"^elsewhere/.*found.*\nThe files of benchmark= are looked for below data_root=elsewh"
    with pytest.raises(ValueError, match=missing), evaluate.naming_data_root("elsewhere/", typed):
        evaluate.plan(load_run(run), None, typed)
    told = pytest.raises(ValueError, match="^other: wrong$")
    with told, evaluate.naming_data_root("elsewhere", typed):
        raise ValueError("other: wrong")


def test_the_report_repeats_the_command_with_its_overrides(run: Path) -> None:
    typed = [f"run={run}", "evaluation.easy_vqa.queries=3", "hydra.verbose=true"]
    *_, last = evaluate.commands(load_run(run), typed)
    assert last == (
        f"python experiments/evaluate.py run={load_run(run).path} evaluation.easy_vqa.queries=3"
    )


def test_a_run_that_is_evaluated_before_its_last_step_says_so(run: Path, printed: str) -> None:
    assert "\n\nEvaluated after 7 of 1,000 training steps.\n\n" in printed
    own = load_run(run)
    own.directory.conversion.write_text("{}")
    try:
        told = evaluate.summary(own.results, own, "Done.")
    finally:
        own.directory.conversion.unlink()
    assert "training steps" not in told, "of a published model nothing was trained here"


def test_the_report_repeats_the_step_that_was_evaluated(run: Path) -> None:
    *_, last = evaluate.commands(load_run(run), [f"run={run}", "step=7", "benchmark=[pope]"])
    assert shlex.split(last)[3:] == ["step=7", "benchmark=[pope]"]


@pytest.mark.parametrize(
    ("launched", "recorded"),
    [
        (["experiments/train.py", "+data/easy_vqa=default"], True),
        (["site-packages/submitit/core/_submit.py", "runs/.sweeps/7"], True),
        (["experiments/train.py", "-m", "seed=0,1"], True),
        (["experiments/train.py", "+data/easy_vqa=default"], False),  # as earlier versions did
    ],
    ids=["here", "submitit", "sweep", "command alone"],
)
def test_the_command_that_trained_a_run_can_be_typed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launched: list[str], recorded: bool
) -> None:
    typed = ["name=own", f"runs={tmp_path}", "data.easy_vqa.blank_rate=0.1"]
    checked = checked_overrides(typed, RunConfig)
    script, *words = launched
    command = [script, *words] if recorded else [script, *checked]
    monkeypatch.setattr("sys.argv", command)
    directory = RunDirectory.open(compose(typed))
    directory.record_launch({}, **({"overrides": checked} if recorded else {}))
    first, _ = evaluate.commands(load_run(directory.path), [])
    python, program, *again = shlex.split(first)
    assert (python, program) == ("python", "experiments/train.py")
    assert compose(again) == directory.config
    assert (again == typed) is recorded


def test_the_command_that_converted_a_run_is_told_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["site-packages/submitit/core/_submit.py", "runs/.sweeps/7"])
    directory = RunDirectory.open(compose(["name=own", f"runs={tmp_path}"]))
    directory.conversion.write_text("{}")
    directory.record_launch({}, overrides=["source=idefics", "name=own"])
    first, _ = evaluate.commands(load_run(directory.path), [])
    assert first == "python experiments/convert.py source=idefics name=own"


def test_a_checkpoint_that_is_not_there_is_an_error(run: Path) -> None:
    with pytest.raises(ValueError, match="expected a checkpoint of step 3"):
        evaluate.evaluate(load_run(run), 3)


# ---------------------------------------------------------------------------- plans and files


@pytest.fixture
def copy(run: Path, printed: str, tmp_path: Path) -> Path:
    """An evaluated run that a test may change."""
    return Path(shutil.copytree(run, tmp_path / "runs" / "seed=0"))


def refuse_models(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a model is loaded that nothing needs")

    for name in names:
        monkeypatch.setattr(evaluation_run, name, never)


def test_other_weights_of_the_same_step_are_evaluated_anew(copy: Path) -> None:
    """As in a run that is trained once more, with its old predictions beside it."""
    checkpoint = load_run(copy).checkpoint().path
    overrides = ["evaluation.shots=[0]", "evaluation.binding=null"]
    before = evaluation_run.digest(checkpoint)
    weights = bytearray((checkpoint / "model.safetensors").read_bytes())
    weights[-4] ^= 1  # the last bit of the last number
    (checkpoint / "model.safetensors").write_bytes(weights)
    assert "\n8 new predictions." in evaluate.evaluate(load_run(copy), None, overrides)
    after = evaluation_run.digest(checkpoint)
    text = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(text.replace("{", "{ ", 1))
    assert len({before, after, evaluation_run.digest(checkpoint)}) == 3


def prompts(run: Path) -> list[tuple[str, ...]]:
    rows = load_run(run).predictions().to_dict("records")
    return sorted((r["benchmark"], r["condition"], r["query"], r["prompt"]) for r in rows)


def test_an_evaluation_of_an_earlier_version_gets_its_cells_without_the_model(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(copy)
    evaluate.evaluate(load_run(copy))
    cells = load_run(copy).cells
    (copy / "cells.jsonl").unlink()
    refuse_models(monkeypatch, "load_model")
    assert "\n0 new predictions." in evaluate.evaluate(load_run(copy))
    assert load_run(copy).cells == cells
    assert "evaluated already" in evaluate.evaluate(load_run(copy))


def test_the_counted_predictions_give_the_results(copy: Path) -> None:
    more = ["evaluation.easy_vqa.queries=5", "evaluation.demonstrations.seeds=[0,1]"]
    evaluate.evaluate(load_run(copy), None, more)
    forget(copy)
    evaluate.evaluate(load_run(copy), None, ["evaluation.demonstrations.seeds=[1,0]"])
    run = load_run(copy)
    found = run.predictions(counted=True)
    assert len(found) < len(run.predictions())
    assert set(found["seed"]) == {0, 1}
    place, records = ("benchmark", "condition", "shots"), found.to_dict("records")
    rows = [row for row in run.results["model"] if row["group"] == "all"]
    assert sum(row["n"] * row["seeds"] for row in rows) == len(found)
    for row in rows:
        own = [r for r in records if all(r[name] == row[name] for name in place)]
        assert sum(r["score"] for r in own) / len(own) == pytest.approx(row["mean"])
        assert list(Counter(r["seed"] for r in own).values()) == [row["n"]] * row["seeds"]


def test_an_evaluation_leaves_the_plans_it_used(run: Path, printed: str) -> None:
    forget(run)
    evaluate.evaluate(load_run(run))
    rows = load_run(run).predictions("easy_vqa", "real").to_dict("records")
    (file,) = (run / "plans" / "easy_vqa").iterdir()
    assert file.name == "seed=0.jsonl"
    plans = {p.query: p for p in read_plans(file, benchmark="easy_vqa")}
    shown = {row["query"]: row["demonstrations"] for row in rows if row["shots"] == 1}
    assert shown
    assert {name: list(plans[name].presented(1)) for name in plans} == {
        name: shown[name] for name in plans
    }
    binding = {"twemoji_held_out_2_ways", "twemoji_seen_2_ways"}
    assert {folder.name for folder in (run / "plans").iterdir()} >= binding


def test_the_same_plans_give_the_same_prompts(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_models(monkeypatch, "load_model")
    evaluate.plan(load_run(copy))
    shutil.move(copy / "planned", copy / "mine")
    before = prompts(copy)
    again = evaluate.evaluate(
        load_run(copy), None, [f"evaluation.demonstrations.plans='{copy / 'mine'}'"]
    )
    assert "\n0 new predictions." in again
    assert prompts(copy) == before
    for written in (copy / "plans").rglob("*.jsonl"):
        used = copy / "mine" / written.relative_to(copy / "plans")
        assert set(written.read_text().splitlines()) <= set(used.read_text().splitlines())


def test_an_edited_plan_is_used_and_a_wrong_one_refused(copy: Path) -> None:
    evaluate.plan(load_run(copy))
    shutil.move(copy / "planned", copy / "mine")
    overrides = [f"evaluation.demonstrations.plans='{copy / 'mine'}'"]
    evaluate.evaluate(load_run(copy), None, overrides)
    file = copy / "mine" / "easy_vqa" / "seed=0.jsonl"
    first, *rest = [json.loads(line) for line in file.read_text().splitlines()]
    first["demonstrations"][-1] = next(
        name for name in ("train/0", "train/5") if name not in first["demonstrations"]
    )
    write_lines(file, [first, *rest])
    # One query at 1 shot, under two conditions: one demonstration cannot be shuffled.
    assert "\n2 new predictions." in evaluate.evaluate(load_run(copy), None, overrides)
    rows = load_run(copy).predictions("easy_vqa", "real").to_dict("records")
    assert rows[-1]["query"] == first["query"]
    assert rows[-1]["demonstrations"] == first["demonstrations"][-1:]
    binding = copy / "mine" / "twemoji_seen_2_ways" / "seed=0.jsonl"
    first, second, *rest = [json.loads(line) for line in binding.read_text().splitlines()]
    first["demonstrations"][-1] = next(
        name for name in second["demonstrations"] if name not in first["demonstrations"]
    )
    write_lines(binding, [first, second, *rest])
    with pytest.raises(ValueError, match="query '00000': expected demonstrations of the classes"):
        evaluate.evaluate(load_run(copy), None, overrides)
    with pytest.raises(ValueError, match=r"seed=1.jsonl: expected a file of plans, found none"):
        evaluate.plan(load_run(copy), None, [*overrides, "evaluation.demonstrations.seeds=[1]"])


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_plans_that_were_edited_are_not_planned_over(copy: Path) -> None:
    for _ in range(2):  # the same ones again are no loss
        evaluate.plan(load_run(copy))
    file = copy / "planned" / "easy_vqa" / "seed=0.jsonl"
    first, *rest = file.read_text().splitlines()
    edited = "\n".join([*rest, first]) + "\n"
    file.write_text(edited)
    other = copy / "planned" / "twemoji_seen_2_ways" / "seed=0.jsonl"
    other.unlink()
    with pytest.raises(ValueError, match=r"easy_vqa/seed=0.jsonl: expected no plans, or the same"):
        evaluate.plan(load_run(copy))
    assert file.read_text() == edited and not other.exists(), "nothing is written then"


def test_the_record_of_the_newest_results_is_not_what_others_are_planned_by(copy: Path) -> None:
    overrides = [f"evaluation.demonstrations.plans='{copy / 'plans'}'"]
    before = (copy / "plans" / "easy_vqa" / "seed=0.jsonl").read_text()
    with pytest.raises(ValueError, match=r"plans: expected another folder than .*: copy it to"):
        evaluate.evaluate(load_run(copy), None, overrides)
    assert (copy / "plans" / "easy_vqa" / "seed=0.jsonl").read_text() == before


def test_plans_are_made_without_a_model(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_models(monkeypatch, "load_model", "load_vision_encoder", "load_language_model")
    shutil.rmtree(copy / "predictions")
    overrides = ["evaluation.demonstrations.seeds=[0,1]"]
    said = evaluate.plan(load_run(copy), None, overrides)
    assert said == f"{2 * (4 + 3 + 3)} plans in {copy / 'planned'}"
    assert not (copy / "predictions").exists()
    files = sorted((copy / "planned" / "easy_vqa").iterdir())
    assert [file.name for file in files] == ["seed=0.jsonl", "seed=1.jsonl"]
    assert files[0].read_text() != files[1].read_text()


@pytest.mark.parametrize("similarity", ["image", "question", "mixed"])
def test_retrieval_loads_the_backbone_it_needs(
    copy: Path, monkeypatch: pytest.MonkeyPatch, similarity: str
) -> None:
    needless = {"image": ["load_language_model"], "question": ["load_vision_encoder"], "mixed": []}
    refuse_models(monkeypatch, "load_model", *needless[similarity])
    overrides = [
        "evaluation.binding=null",
        "evaluation.demonstrations.strategy=rices",
        f"evaluation.demonstrations.similarity={similarity}",
        "evaluation.demonstrations.pool=20",
    ]
    assert evaluate.plan(load_run(copy), None, overrides).startswith("4 plans")
    for plan in read_plans(copy / "planned" / "easy_vqa" / "seed=0.jsonl"):
        names = str(dict(plan.parameters)["features"])
        assert ("image" in names) == (similarity != "question")
        assert ("question" in names) == (similarity != "image")


def test_a_test_split_gives_a_file_for_the_server(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ROOT / "tests" / "data" / "benchmarks"
    said = evaluate.evaluate(
        load_run(copy),
        None,
        [
            "evaluation.binding=null",
            "evaluation.shots=[0]",
            f"evaluation.hateful_memes.test.annotations={data}/hateful_memes/test_seen.jsonl",
            f"evaluation.hateful_memes.test.images={data}/hateful_memes",
            f"evaluation.hateful_memes.train.annotations={data}/hateful_memes/dev_seen.jsonl",
            f"evaluation.hateful_memes.train.images={data}/hateful_memes",
        ],
    )
    path = copy / "submissions" / "hateful_memes_0_shots.csv"
    assert f"For the server: {path}" in said
    header, row = path.read_text().splitlines()
    assert (header, row.split(",")[0]) == ("id,proba,label", "16395")
    assert {r["benchmark"] for r in load_run(copy).results["model"]} == {"easy_vqa"}


# ---------------------------------------------------------------------------- ask


def asked(run: Path, **settings: Any) -> str:
    config = ask.AskConfig(run=str(run), **settings)
    return ask.ask(load_run(run), ask.episode(config), None, config.max_new_tokens)


def test_an_answer_has_its_probability(run: Path) -> None:
    said = asked(
        run,
        image="query.png",
        question="what is in the image?",
        demos=["query.png | what color is it? | red"],
    )
    answer, _, probability = said.rpartition("  (probability ")
    assert answer
    assert 0 < float(probability.removesuffix(")")) <= 1


@pytest.mark.parametrize("beams", [1, 3])
def test_an_answer_is_the_demo_page_s_and_decoded_as_the_run_is_evaluated(
    world: Path, run: Path, beams: int, monkeypatch
) -> None:
    if beams > 1:
        with_beams = ("model.cross_attention.gate_init=1.0", f"evaluation.beams={beams}")
        run = save_untrained_run(world, f"beams_{beams}", *with_beams)
    monkeypatch.chdir(world)
    said = asked(run, image="query.png", question="what is it?", demos=["query.png | why? | red"])
    respondent = open_respondent(load_run(run))
    assert respondent.decoding.beams == beams
    image = draw("red", "circle", 0)
    found = answer(respondent, [Shown(image, "why?", "red")], Shown(image, "what is it?"))
    assert said == f"{found.text}  (probability {found.said.probability:.3g})"


def test_demonstrations_stand_before_the_question_in_their_order() -> None:
    episode = ask.episode(
        ask.AskConfig(
            run="r",
            image="query.png",
            question="is it red?",
            demos=["query.png | what color? | red", "query.png|what shape?|circle"],
        )
    )
    assert prompt_text(prompt(episode, QUESTION)) == (
        "<image>what color? red<|endofchunk|><image>what shape? circle<|endofchunk|>"
        "<image>is it red?"
    )


def test_candidates_are_ranked_and_their_probabilities_sum_to_one(run: Path) -> None:
    said = asked(run, image="query.png", candidates=["dan", "bax", "red circle"])
    values = [float(line.split()[-1]) for line in said.splitlines()]
    assert len(values) == 3
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, abs=0.002)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "missing.png"}, "missing.png: no such image file"),
        ({"image": "query.png", "demos": ["query.png"]}, 'expected "image | question | answer"'),
        ({"image": "query.png", "demos": ["no.png | q | a"]}, "no.png: no such image file"),
        (
            {"image": "query.png", "candidates": ["dax", "wug", "dax "]},
            "candidates: expected different, non-empty ones, got ['dax', 'wug', 'dax ']",
        ),
        (
            {"image": "query.png", "candidates": ["dax", " "]},
            "candidates: expected different, non-empty ones, got ['dax', ' ']",
        ),
        ({"image": "query.png", "question": " "}, "question: expected text, got ' '"),
        ({"image": "query.png", "max_new_tokens": 0}, "max_new_tokens: expected >= 1, got 0"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_loaded(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        ask.episode(ask.AskConfig(run="r", **settings))


def test_the_question_is_looked_at_before_the_run() -> None:
    with pytest.raises(FileNotFoundError, match=r"missing.png: no such image file"):
        ask.main(ask.AskConfig(run="nowhere", image="missing.png"))


# ---------------------------------------------------------------------------- command line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=nowhere"], "nowhere/config.yaml: expected a run's configuration"),
        (["run={run}", "evaluation.shot=[1]"], "did you mean evaluation.shots?"),
        ([], "run: expected a value"),
    ],
)
def test_a_mistake_ends_with_its_message_alone(
    world: Path, run: Path, arguments: list[str], message: str
) -> None:
    done = start("evaluate", world, *(a.format(run=run) for a in arguments))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def on_two_processes(world: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = ["torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--no_python"]
    script = [sys.executable, str(ROOT / "experiments" / "evaluate.py")]
    return subprocess.run(
        [sys.executable, "-m", *launcher, *script, *arguments],
        env=environment(world),
        cwd=world,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_evaluate_as_one(world: Path, run: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for copy in (one, two):
        shutil.copytree(run / "checkpoints", copy / "checkpoints")
        shutil.copy(run / "config.yaml", copy / "config.yaml")
    evaluate.evaluate(load_run(one))
    done = on_two_processes(world, f"run={two}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("46 new predictions.") == 1, "only the main process speaks"
    assert "46/46" in done.stderr, "its bar counts the predictions of both"
    results = []
    for path in (one, two):  # the shape of a batch changes the last digits of a probability
        text = (path / "results.json").read_text()
        results.append(json.loads(text, parse_float=lambda number: round(float(number), 4)))
        del results[-1]["timing"]
    assert results[0] == results[1]


@pytest.mark.slow
def test_a_mistake_on_two_processes_is_told_once(world: Path, run: Path) -> None:
    done = on_two_processes(world, f"run={run}", "evaluation.seed=1", "step=3")
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert "expected a checkpoint of step 3" in done.stderr


@pytest.mark.slow
def test_paths_and_questions_are_typed_as_they_are(world: Path, run: Path) -> None:
    done = start("evaluate", world, f"run={run}", "evaluation.easy_vqa.queries=4")
    assert done.returncode == 0, done.stderr
    demos = 'demos=["query.png | what color is it? | red"]'
    question = "question=what's in it, a circle?"
    done = start("ask", world, f"run={run}", "image=query.png", question, demos)
    assert done.returncode == 0, done.stderr
    assert "(probability " in done.stdout


@pytest.mark.slow
def test_a_plan_of_benchmarks_that_the_run_s_own_settings_complete(world: Path, run: Path) -> None:
    data = ROOT / "tests" / "data" / "benchmarks"
    typed = [
        f"run={run}",
        "evaluation.easy_vqa=null",
        "evaluation.binding=null",
        "benchmark=pope",
        f"data_root={data}",
        "evaluation.pope.settings=[random]",  # the files of the section come from benchmark=
        "plan_only=true",
    ]
    done = start("evaluate", world, *typed)
    assert done.returncode == 0, done.stderr
    assert f"2 plans in {run}" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", ["evaluate", "ask"])
def test_help_says_what_it_does(world: Path, script: str) -> None:
    done = start(script, world, "--help")
    assert done.returncode == 0
    assert f"python experiments/{script}.py run=" in done.stdout
    assert "run: ???" in done.stdout
