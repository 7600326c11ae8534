"""The findings in docs/ablations.md are those of experiments/results."""

import json
import re
from pathlib import Path

import pytest

from flamingo.ablation.sweep import compose_sweep
from flamingo.comparison.formats import markdown
from flamingo.comparison.sweep import read_results
from flamingo.comparison.sweep_table import control_table, sweep_tables

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "ablations.md").read_text()
# Sweeps of a user's own put their results there too; those of ours have a section.
RESULTS = [
    path
    for path in sorted((ROOT / "experiments" / "results").glob("*.json"))
    if f"({path.stem}.png)" in DOCS
]


def test_every_figure_of_the_docs_has_its_results():
    figures = set(re.findall(r"\((ablation_\w+)\.png\)", DOCS))
    assert figures == {path.stem for path in RESULTS} and figures


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_docs_have_the_tables_of_each_sweep_that_was_run(path: Path):
    results = read_results(path)
    for table in sweep_tables(results):
        for row in markdown(table).splitlines():
            if row.startswith("|"):
                assert row in DOCS


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_are_of_the_sweep_as_it_is_today(path: Path):
    results = json.loads(path.read_text())
    sweep = compose_sweep(results["sweep"])
    arms = [arm["name"] for arm in results["arms"]]
    assert arms[0] == sweep.config.reference
    assert arms == [arm for arm in sweep.arms if arm in arms], "all of its arms, in its order"
    assert all(arm["seeds"] == sweep.config.seeds for arm in results["arms"])
    assert results["steps"] == sweep.runs[0].config.training.steps
    section = DOCS.split(f"\n### {sweep.config.question}\n")[1].split("\n### ")[0]
    not_run = [line for line in section.splitlines() if "not run" in line]
    for arm in set(sweep.arms) - set(arms):
        assert any(f"`{arm}`" in line for line in not_run), f"{arm}: has no results, nor says why"


def test_the_first_table_of_the_readme_is_the_reference_of_a_sweep():
    results = read_results(ROOT / "experiments" / "results" / "ablation_media.json")
    readme = (ROOT / "README.md").read_text().split("## Two commands")[0]
    rows = {
        "Emoji, held-out concepts, 2 ways": "new emoji, new words, 2 ways",
        "Emoji, held-out concepts, 5 ways": "new emoji, new words, 5 ways",
        "easy-VQA": "easy-VQA",
    }
    found = [row for row in control_table(results).rows if row[1] == results["reference"]]
    shown = {rows[title]: scores for title, _, shots, *scores in found if title in rows}
    assert len(shown) == 3
    for name, scores in shown.items():
        assert f"| {name} | {' | '.join(scores)} |" in readme
