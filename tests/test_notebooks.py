"""The notebooks run from top to bottom on a small run, and are kept without their outputs."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from experiments.ask import AskConfig
from experiments.convert import ConvertConfig, convert
from flamingo.command_line import quote_values
from flamingo.composition import compose
from flamingo.data.concepts import folder_concepts
from flamingo.evaluation.report_tables import counted
from flamingo.evaluation.statistics import paired_difference
from flamingo.evaluation_config import settings_of
from flamingo.model.masking import text_time
from flamingo.naming import CONDITION_LABELS
from flamingo.plots import Exhibit
from flamingo.testing import COLOURS, SHAPES, draw, save_tiny_language_model
from tests.tiny_world import conversion, save_cache, save_release, save_vision_encoder

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LOOK_INSIDE = ROOT / "notebooks" / "01_look_inside.ipynb"
LAYERS = 30
"""Of the tiny language model, as many as the real one of the experiment has."""


def tracked() -> list[str]:
    """The notebooks that git knows."""
    command = ["git", "-C", str(ROOT), "ls-files", "notebooks/*.ipynb"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip(f"needs a git checkout: {listed.stderr}")
    return listed.stdout.splitlines()


def test_no_output_is_committed():
    names = tracked()
    assert "notebooks/01_look_inside.ipynb" in names
    for name in names:
        command = ["git", "-C", str(ROOT), "show", f":{name}"]
        committed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for cell in nbformat.reads(committed, as_version=4).cells:
            if cell.cell_type == "code":
                assert (cell.outputs, cell.execution_count) == ([], None), f"{name}: {cell.source}"


def test_commands_in_the_text_fit_a_page_and_run_as_they_are_copied():
    (block,) = [
        block
        for cell in nbformat.read(LOOK_INSIDE, as_version=4).cells
        if cell.cell_type == "markdown"
        for block in cell.source.split("```")[1::2]
        if "experiments/ask.py" in block
    ]
    *continued, last = block.strip().splitlines()
    assert continued and all(line.endswith(" \\") for line in continued)
    assert all(len(line) <= 100 for line in (*continued, last))
    python, script, *arguments = shlex.split(block.replace("\\\n", " "))  # as a shell
    assert (python, (ROOT / script).is_file()) == ("python", True)
    overrides = quote_values(arguments, verbatim=["run", "image", "question"])
    config = compose(overrides, AskConfig, "ask")
    assert config.question == "what shape is in the image?"
    assert [demo.split(" | ")[2] for demo in config.demos] == ["red", "no"]


def test_runs_made_as_notebook_04_tells_are_like_those_that_it_opens():
    (notebook,) = [path for path in NOTEBOOKS if path.stem.startswith("04")]
    text = "".join(
        cell.source.replace("\\\n", " ")
        for cell in nbformat.read(notebook, as_version=4).cells
        if cell.cell_type == "markdown"
    )
    commands = re.findall(r"experiments/train\.py (.*ablation=.*)", text)
    assert len(commands) == 2
    for command in commands:
        words = command.split()
        own, reference = compose(words), compose(words[:1])
        assert words[0].startswith("experiment=") and own.name.startswith(f"{reference.name}-")
        assert (own.language, own.vision) == (reference.language, reference.vision)
        assert own.training.steps == reference.training.steps
        assert own.evaluation == reference.evaluation
        assert own.model != reference.model


def run_of(name: str, views: int, scores: list[float | None]) -> Any:
    """What notebook 04 asks of a run: queries have the same numbers, whatever the settings."""
    episodes = pd.DataFrame(
        {"benchmark": "binding", "shots": shots, "query": f"{i:05d}", "score": s, "cluster": f"{i}"}
        for shots in (0, 1)
        for i, s in enumerate(scores)
    )
    return SimpleNamespace(
        path=Path(name),
        config=SimpleNamespace(name=name, seed=0),
        directory=SimpleNamespace(results=Path(name)),
        results={"step": 5, "settings": {"evaluation": {"binding": {"views": views}}}},
        episodes=lambda condition, counted: episodes,
    )


def compared_by_notebook_04(run: Any, others: list[Any]) -> tuple[list[Any], list[str]]:
    """The runs whose scores are drawn; labels of the differences, or what is said instead."""
    (notebook,) = [path for path in NOTEBOOKS if path.stem.startswith("04")]
    cells = nbformat.read(notebook, as_version=4).cells
    drawn: list[Any] = []

    def scores(runs: list[Any]) -> pd.DataFrame:
        drawn.extend(runs)
        return pd.DataFrame({"condition": ["real"], "name": ["x"], "seed": [0]})

    shown: list[Any] = []
    names = {
        **{"run": run, "runs": [run, *others], "RUNS": "runs", "pd": pd, "asdict": asdict},
        **{"settings_of": settings_of, "paired_difference": paired_difference},
        **{"run_frames": SimpleNamespace(scores=scores), "plot_lines": lambda *_, **__: None},
        "plot_differences": lambda rows, **_: list(rows["label"]),
        **{"Markdown": lambda text: [text], "display": shown.extend},
    }
    for cell in cells:
        if "def asked(" in cell.source or "def by_query(" in cell.source:
            exec(cell.source, names)
    return drawn, shown


def test_notebook_04_pairs_runs_asked_the_same_at_most_shots_and_says_which_were_not():
    run, same = run_of("a", 3, [1.0, 0.0]), run_of("b", 3, [0.0, 0.0])
    other = run_of("c", 2, [0.0, 0.0])
    assert compared_by_notebook_04(run, [same, other]) == (
        [run, same],
        ["Evaluated in another way and left out: c, seed 0.", "b, seed 0: binding, 1 shots"],
    )


def test_notebook_04_has_nothing_to_pair_where_queries_have_no_scores_of_their_own():
    run, other = run_of("a", 3, [None, None]), run_of("b", 3, [None, None])
    drawn, (told,) = compared_by_notebook_04(run, [other])
    assert drawn == [run, other]
    assert told.startswith("Nothing to compare query by query: no other run below `runs`")


def test_notebook_04_says_so_where_no_run_logged_a_loss():
    (notebook,) = [path for path in NOTEBOOKS if path.stem.startswith("04")]
    (source,) = [
        cell.source
        for cell in nbformat.read(notebook, as_version=4).cells
        if "run_frames.metrics(" in cell.source
    ]
    shown: list[str] = []
    logged = pd.DataFrame(columns=["run", "name", "seed"])  # of converted runs
    frames = SimpleNamespace(metrics=lambda runs: logged)
    names = {"runs": [], "run_frames": frames, "display": shown.append, "Markdown": str}
    exec(source, names)
    assert shown == ["No loss was logged: a model that was converted was trained elsewhere."]


def images_folder(given: Path | None, monkeypatch) -> Path:
    """What notebook 05 takes for its folder of images."""
    (notebook,) = [path for path in NOTEBOOKS if path.stem.startswith("05")]
    cells = nbformat.read(notebook, as_version=4).cells
    (source,) = [c.source for c in cells if 'environ.get("FLAMINGO_IMAGES")' in c.source]
    monkeypatch.delenv("FLAMINGO_IMAGES", raising=False)
    if given is not None:
        monkeypatch.setenv("FLAMINGO_IMAGES", str(given))
    names = {"os": os, "Path": Path, "mkdtemp": tempfile.mkdtemp, "draw": draw}
    names |= {"COLOURS": list(COLOURS)[:2], "SHAPES": SHAPES[:2]}
    exec(source, names)
    return names["folder"]


def test_images_are_drawn_where_none_are_named_and_taken_where_they_are(tmp_path, monkeypatch):
    assert len(folder_concepts(images_folder(None, monkeypatch))) == 4
    (tmp_path / "mine" / "oak").mkdir(parents=True)
    assert images_folder(tmp_path / "mine", monkeypatch) == tmp_path / "mine"
    assert not list((tmp_path / "mine" / "oak").iterdir())


@pytest.mark.parametrize("empty", [False, True])
def test_a_folder_of_images_that_is_not_one_is_refused_and_not_made(tmp_path, monkeypatch, empty):
    folder = tmp_path / "oops"
    if empty:
        folder.mkdir()
    told = "FLAMINGO_IMAGES: expected a folder with a sub-folder a class, found"
    with pytest.raises(ValueError, match=f"{told} n.* {re.escape(str(folder))}"):
        images_folder(folder, monkeypatch)
    assert folder.exists() == empty and not list(folder.glob("*"))


def source_of(notebook: str, text: str) -> str:
    """The one cell of code of the notebook of that number which has ``text`` in it."""
    (path,) = [path for path in NOTEBOOKS if path.stem.startswith(notebook)]
    cells = nbformat.read(path, as_version=4).cells
    (source,) = [c.source for c in cells if c.cell_type == "code" and text in c.source]
    return source


def test_notebook_01_says_so_where_no_loss_was_logged():
    shown: list[Any] = []
    names = {
        **{"run": SimpleNamespace(metrics=pd.DataFrame()), "display": shown.append},
        **{"Markdown": str, "plot_loss": None, "plot_gates": None},
    }
    exec(source_of("01", "plot_loss("), names)
    assert shown == ["No loss was logged: a model that was converted was trained elsewhere."]


def row_of(benchmark: str, query: str, score: float | None, **other: Any) -> dict[str, Any]:
    """A row of ``run.episodes(counted=True)``: two words, each shown once."""
    return {
        **{"benchmark": benchmark, "condition": "real", "seed": 0, "shots": 1, "query": query},
        **{"question": "", "demonstrations": ("a", "b"), "candidates": ("dax", "wug")},
        **{"demonstration_questions": ("", ""), "demonstration_answers": ("dax", "wug")},
        **{"answer": "dax", "probability": 0.5, "score": score, "target": "wug"},
        **{"prompt": "<image>A dax.<image>A wug.<image>A"},
        **other,
    }


def shown_by_notebook_01(rows: list[dict[str, Any]], elsewhere: str = "") -> dict[str, Any]:
    """Names after its third section, and the episode that it follows.

    ``shown`` is what was displayed, galleries as their exhibits. Images of the benchmark
    ``elsewhere`` are not found.
    """

    def images(row: pd.Series) -> Any:
        if row["benchmark"] == elsewhere:
            raise ValueError(f"no images of {elsewhere} here")
        return SimpleNamespace(
            in_prompt=[draw("red", "circle", 0)] * row["prompt"].count("<image>")
        )

    benchmarks = [
        {"name": name, "title": name.upper(), "unit": "demonstrations a class"}
        for name in dict.fromkeys(row["benchmark"] for row in rows)
    ]
    shown: list[Any] = []
    names: dict[str, Any] = {
        "run": SimpleNamespace(
            results={"benchmarks": benchmarks},
            episodes=lambda counted: pd.DataFrame(rows),
            images=lambda: images,
        ),
        **{"pd": pd, "Exhibit": Exhibit, "plot_gallery": list, "counted": counted},
        **{"CONDITION_LABELS": CONDITION_LABELS, "Markdown": str},
        **{"display": shown.append, "shown": shown},
    }
    for text in ("run.images()", "def exhibit(", 'print(episode["prompt"])'):
        exec(source_of("01", text), names)
    return names


def test_episodes_are_shown_with_their_controls_and_unjudged_answers_are_not_wrong():
    asked = {"question": "is it $1 or $2?", "demonstration_questions": ("what?", None)}
    rows = [
        *(row_of("a", "0", 1.0, **asked), row_of("a", "1", 0.0), row_of("a", "2", None)),
        row_of("a", "0", 0.0, condition="blank_query", answer="wug"),
        row_of("a", "0", 0.0, condition="blank_query", seed=1, answer="other draw"),
        row_of("a", "9", 1.0, shots=9, demonstrations=("a",) * 18),  # does not fit a line
    ]
    title, exhibits = shown_by_notebook_01(rows)["shown"]
    assert title == "**A**, 1 demonstration a class"
    assert [own.right for own in exhibits] == [True, None, False]
    assert exhibits[0].captions == ["what?\ndax", "wug", "is it $1 or $2?"]
    assert exhibits[2].captions == ["dax", "wug", "?"]
    assert exhibits[0].said == "dax (50%)\nexpected wug\nquery image blanked: wug (50%)"
    assert exhibits[2].said == "dax (50%)\nexpected wug"


def test_where_the_data_of_a_benchmark_are_elsewhere_the_others_are_shown(capsys):
    rows = [row_of("a", "0", 0.0), row_of("a", "1", 1.0), row_of("b", "0", 1.0)]
    names = shown_by_notebook_01(rows, elsewhere="b")
    first, exhibits, second = names["shown"]
    assert (first[:5], len(exhibits), second[:5]) == ("**A**", 2, "**B**")
    assert "no images of b here" in capsys.readouterr().out
    assert (names["episode"]["benchmark"], names["episode"]["query"]) == ("a", "1")


def test_an_episode_is_followed_also_where_no_answer_has_a_score_of_its_own():
    rows = [row_of("captions", query, None, candidates=()) for query in "01"]
    assert shown_by_notebook_01(rows)["episode"]["query"] == "0"


def test_the_words_of_the_demonstrations_are_passed_on_in_the_same_prompt():
    told = {"a": {"prompt": "<image>{question} is a {answer}.\n"}}
    prompt = "<image>this is a dax.\n<image>that is a wug.\n<image>it is a"
    questions = {"demonstration_questions": ("this", "that")}
    names = {"episode": row_of("a", "0", 1.0, prompt=prompt, **questions), "told": told}
    exec(source_of("01", "passed_on ="), names)
    assert names["passed_on"] == "<image>this is a wug.\n<image>that is a dax.\n<image>it is a"


def test_the_benchmark_of_notebook_05_takes_ten_lines():
    lines = source_of("05", "FolderBenchmarkConfig(").splitlines()
    assert len([line for line in lines if line.strip()]) <= 10


@pytest.mark.parametrize("separator", [[], [5], [5, 6]], ids=["none", "one token", "two"])
def test_attention_is_drawn_of_the_ends_of_answers_over_images_as_the_encoder_sees_them(separator):
    image, end, answers = 1, 2, (10, 11, 12)
    ids = [i for answer in answers[:2] for i in (image, 3, answer, end, *separator)]
    ids += [image, 3, answers[2]]
    shown, asked = {}, []

    def attention_maps(model, input_ids, *, tokens, pixel_values):
        asked.extend(ids[token] for token in tokens)
        return SimpleNamespace(layers=[4], over_patches=lambda token: torch.ones(1, 2, 2))

    names = {
        **{"images": ["a", "b", "c"], "ids": ids},
        "inputs": {"input_ids": None, "pixel_values": None},
        "tokens": [f"token {i}" for i in ids],
        "text": text_time(torch.tensor([ids]) == image),
        "model": SimpleNamespace(
            config=SimpleNamespace(end_of_chunk_token_id=end),
            vision_encoder="encoder",
            cross_attention={"4": SimpleNamespace(attention_gate=None)},
        ),
        "seen_image": lambda encoder, image: f"{image} seen by {encoder}",
        "attention_maps": attention_maps,
        "plot_attention": lambda images, maps, **told: shown.update(told, images=images),
    }
    exec(source_of("01", "plot_attention(\n"), names)
    assert tuple(asked) == answers
    assert shown["rows"] == [f"token {i}" for i in answers]
    assert shown["images"] == [f"{name} seen by encoder" for name in "abc"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Of the commands and kernels: a cache of their own, and the package from this checkout."""
    assets = save_cache(tmp_path_factory.mktemp("cache"))
    # Without results of sweeps notebook 04 makes its own; those that are kept are read elsewhere.
    return {
        "FLAMINGO_SWEEPS": str(tmp_path_factory.mktemp("sweeps")),
        "FLAMINGO_CACHE": str(assets),
        "FLAMINGO_QUERIES": "8",
        "PYTHONPATH": str(ROOT),
        "ACCELERATE_USE_CPU": "true",
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory, environment) -> Path:
    """The smoke experiment, trained and evaluated with tiny random backbones.

    Beside it stands an ablation of it: the command that notebook 04 gives, with these backbones.
    """
    folder = tmp_path_factory.mktemp("run")
    save_tiny_language_model(folder / "language", layers=LAYERS)
    save_vision_encoder(folder / "vision")
    path = folder / "runs" / "smoke" / "seed=0"
    backbones = [f"vision.name={folder / 'vision'}", f"language.name={folder / 'language'}"]
    train = ["experiments/train.py", "experiment=smoke", f"runs={folder / 'runs'}", *backbones]
    other = folder / "runs" / "smoke-depth_2" / "seed=0"
    for command in (
        train,
        ["experiments/evaluate.py", f"run={path}"],
        [*train, "ablation=resampler_depth_2", "name=smoke-depth_2"],
        ["experiments/evaluate.py", f"run={other}"],
    ):
        finished = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        assert finished.returncode == 0, finished.stderr
    return path


def execute(notebook: Path, run: Path, environment: dict[str, str]):
    """The notebook after running every cell, in its own folder."""
    opened = nbformat.read(notebook, as_version=4)
    client = nbclient.NotebookClient(
        opened,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(notebook.parent)}},
    )
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {**environment, "FLAMINGO_RUN": str(run)}.items():
            patched.setenv(name, value)
        return client.execute()


@pytest.fixture(scope="module")
def executed(run, environment):
    """Gives a notebook after it ran, once for all tests."""
    return cache(lambda notebook: execute(notebook, run, environment))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom_and_leaves_the_run_as_it_was(notebook, run, executed):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code = [cell for cell in executed(notebook).cells if cell.cell_type == "code"]
    assert code and all(cell.execution_count for cell in code)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.slow
def test_looking_inside_shows_every_picture(executed):
    cells = executed(LOOK_INSIDE).cells
    shown = [o.data for cell in cells for o in cell.get("outputs", []) if "data" in o]
    pictures = [data for data in shown if "image/png" in data]
    titles = [t for data in shown if (t := data.get("text/markdown", "")).startswith("**")]
    assert any("easy-VQA" in t for t in titles) and any("held-out concepts" in t for t in titles)
    # Accuracy, loss, gates, which image each token sees, attention over images, live answers; and
    # the episodes of each benchmark.
    assert len(pictures) == 6 + len(titles)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "pictures"), [("02", 8), ("03", 4), ("04", 4), ("05", 4), ("06", 2)]
)
def test_every_story_has_its_pictures(number, pictures, executed):
    (notebook,) = [path for path in NOTEBOOKS if path.stem.startswith(number)]
    outputs = [o for cell in executed(notebook).cells for o in cell.get("outputs", [])]
    shown = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(shown) >= pictures


@pytest.mark.slow
def test_the_ablation_that_notebook_04_gives_is_found_by_it(executed):
    (notebook,) = [path for path in NOTEBOOKS if path.stem.startswith("04")]
    cells = executed(notebook).cells
    (told,) = [cell.source for cell in cells if " ablation=" in cell.source]
    assert "experiment=smoke ablation=resampler_depth_2 name=smoke-depth_2" in told
    shown = [o.data for cell in cells for o in cell.get("outputs", []) if "data" in o]
    frames = [data["text/html"] for data in shown if "<table" in data.get("text/html", "")]
    assert "smoke-depth_2" in frames[0] and "model.resampler.depth" in frames[0]
    told = [data["text/markdown"] for data in shown if "text/markdown" in data]
    assert "made of the runs above" in told[0]
    assert "Differences to “smoke”" in told[1] and "smoke-depth_2" in told[1]


@pytest.mark.slow
def test_notebook_06_reads_what_open_flamingo_wrote_and_gives_its_logits(executed):
    (notebook,) = [path for path in NOTEBOOKS if path.stem.startswith("06")]
    outputs = [o for cell in executed(notebook).cells for o in cell.get("outputs", [])]
    (printed,) = [o["text"] for o in outputs if "tensors" in o.get("text", "")]
    assert "resampler" in printed and "cross_attention" in printed
    (table,) = [
        o["data"]["text/plain"]
        for o in outputs
        if "largest difference" in o.get("data", {}).get("text/plain", "")
    ]
    differences = [float(line.split()[-1]) for line in table.splitlines()[1:]]
    assert len(differences) == 3 and max(differences) < 1e-4
    plain = [o["data"]["text/plain"] for o in outputs if "text/plain" in o.get("data", {})]
    (saved,) = [text for text in plain if "gives the same logits" in text]
    assert [line.split()[-1] for line in saved.splitlines() if "same logits" in line] == ["True"]


@pytest.mark.slow
def test_notebook_06_takes_a_converted_run_apart_and_leaves_it_as_it_was(tmp_path, environment):
    command = conversion(save_release(tmp_path / "release"), tmp_path / "runs")
    convert(compose(command, ConvertConfig, "config"))
    run = tmp_path / "runs" / "openflamingo_4b" / "seed=0"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    (notebook,) = [path for path in NOTEBOOKS if path.stem.startswith("06")]
    cells = execute(notebook, run, environment).cells
    shown = [o.data for cell in cells for o in cell.get("outputs", []) if "data" in o]
    (told,) = [t for data in shown if "converted" in (t := data.get("text/plain", ""))]
    values = {line.split()[0]: line.split()[-1] for line in told.splitlines()}
    assert (values["run"], values["converted"]) == ("openflamingo_4b", "yes")
    assert (
        len([data for data in shown if "image/png" in data]) == 2
    )  # gates, and what closing costs
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.slow
def test_without_a_run_looking_inside_says_how_to_make_one(tmp_path, environment):
    with pytest.raises(nbclient.exceptions.CellExecutionError) as raised:
        execute(LOOK_INSIDE, tmp_path / "none", environment)
    assert raised.value.ename == "FileNotFoundError"
    assert str(tmp_path / "none") in raised.value.evalue
    assert "make quickstart" in raised.value.evalue and "FLAMINGO_RUN" in raised.value.evalue
