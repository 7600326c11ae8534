"""The patches of docs/examples apply to this version, and what they add works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PATCHES = sorted((ROOT / "docs" / "examples").glob("*.patch"))
COPIED = ("conf", "docs", "experiments", "flamingo", "tests")

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def by_name(path: Path) -> str:
    return path.stem


def apply(patch: Path, folder: Path, *options: str) -> None:
    command = ["git", "apply", *options, str(patch)]
    applied = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert applied.returncode == 0, f"{applied.stderr}see docs/tour.md, keep it true"


def touched(patch: Path) -> dict[str, bool]:
    """Files of a patch -> whether they are new."""
    pairs = re.findall(r"^--- (.+)\n\+\+\+ b/(.+)$", patch.read_text(), re.MULTILINE)
    return {name: before == "/dev/null" for before, name in pairs}


def test_there_is_an_example_of_each_addition() -> None:
    names = {"add_a_benchmark", "add_a_language_model", "add_a_source", "add_a_vision_encoder"}
    assert {patch.stem for patch in PATCHES} == names


@pytest.mark.parametrize("patch", PATCHES, ids=by_name)
def test_an_example_applies_to_this_version(patch: Path) -> None:
    apply(patch, ROOT, "--check")


@pytest.mark.parametrize("patch", PATCHES, ids=by_name)
def test_an_addition_is_one_new_file_of_the_package_and_at_most_three_edits(patch: Path) -> None:
    package = {name: new for name, new in touched(patch).items() if name.startswith("flamingo/")}
    assert sum(package.values()) <= 1
    assert sum(not new for new in package.values()) <= 3
    assert any(name.startswith("tests/") for name in touched(patch))


@pytest.mark.parametrize("patch", PATCHES, ids=by_name)
def test_the_tour_shows_every_example_and_names_its_files(patch: Path) -> None:
    tour = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
    section = next(part for part in tour.split("\n## ") if f"(examples/{patch.name})" in part)
    for name in touched(patch):
        if name.startswith("flamingo/"):
            assert Path(name).name in section, name


@pytest.mark.slow
def test_the_tests_that_the_examples_add_pass_where_all_are_applied(tmp_path: Path) -> None:
    for name in COPIED:
        leave_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=leave_out)
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    shutil.copyfile(ROOT / "README.md", tmp_path / "README.md")
    for patch in PATCHES:
        apply(patch, tmp_path)
    files = [name for patch in PATCHES for name in touched(patch) if name.endswith(".py")]
    for check in (["check"], ["format", "--check"]):
        run(tmp_path, "ruff", *check, *files)
    tests = [name for name in files if name.startswith("tests/")]
    told = "tests/test_docs.py::test_every_benchmark_file_is_told_of"
    run(tmp_path, "pytest", "-q", *tests, told, "tests/test_architecture.py")


def run(folder: Path, module: str, *arguments: str) -> None:
    """Run a module in ``folder`` with the package that is there."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
