"""The order of the rooms and the size of functions, read from the sources."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "flamingo").rglob("*.py"))
SCRIPTS = sorted((ROOT / "experiments").rglob("*.py"))

BASE = {
    "choices",
    "structured",
    "evaluation_config",
    "source_config",
    "config",
    "types",
    "images",
    "files",
    "typed_json",
    "naming",
}
MAY_IMPORT = {
    "choices": set(),
    "structured": set(),
    "types": set(),
    "files": set(),
    "typed_json": set(),
    "images": {"types"},
    "naming": {"choices"},
    "plots": {"choices", "images", "naming"},
    "provenance": set(),
    "launching": set(),
    "sweeps": {"structured"},
    "evaluation_config": {"choices", "structured"},
    "source_config": {"choices", "structured"},
    "config": {"choices", "structured", "evaluation_config", "source_config"},
    "composition": {"structured", "config"},
    "command_line": {"structured", "config", "composition", "launching", "sweeps"},
    "identity": {"choices", "structured", "config"},
    "backbones": BASE,
    "data": BASE,
    "model": BASE | {"backbones"},
    "training": BASE | {"backbones", "model", "data"},
    "evaluation": BASE | {"backbones", "model", "data", "plots"},
    "interop": BASE | {"backbones", "model", "data", "evaluation", "runs"},
    "run_directory": BASE | {"identity", "provenance", "training"},
    "run_selection": BASE | {"identity", "run_directory"},
    "run_checks": BASE,
    "run_images": BASE | {"backbones", "evaluation", "identity", "run_checks"},
    "run_episodes": BASE | {"evaluation"},
    "runs": BASE
    | {"identity", "run_checks", "run_directory", "run_selection", "run_images", "run_episodes"}
    | {"backbones", "model", "training", "evaluation"},
    "run_frames": BASE | {"evaluation", "run_checks", "run_selection", "runs"},
    "build": BASE | {"backbones", "model", "data", "training", "evaluation", "runs"},
    "planning": BASE | {"backbones", "model", "data", "training", "build"},
    "benchmarking": BASE
    | {"backbones", "model", "data", "training", "evaluation", "interop", "planning", "plots"},
    "comparison": BASE
    | {"evaluation", "training", "identity", "run_images", "runs", "provenance", "plots"},
    "evaluation_run": BASE
    | {"backbones", "model", "data", "training", "evaluation", "run_directory", "runs", "build"},
    "ablation": BASE
    | {
        "composition",
        "identity",
        "run_directory",
        "runs",
        "training",
        "comparison",
        "build",
        "plots",
    },
    "asking": BASE | {"backbones", "data", "evaluation", "runs"},
    "demo": BASE | {"backbones", "model", "data", "evaluation", "asking", "plots"},
    "publication": BASE | {"model", "evaluation", "runs"},
    "testing": BASE | {"backbones", "model", "data"},
    "__init__": {"model"},
}
"""Room (a package or module directly below ``flamingo``) -> the rooms it may import."""
LONGEST_FUNCTION = 80
MAY_BE_LONG = {"training/loop.py"}
MAY_DRAW = {"benchmarking/plot.py", "benchmarking/curves.py"}
"""With matplotlib, besides ``plots``: the pictures of the speed benchmark are its own."""


def room(path: Path) -> str:
    return path.relative_to(ROOT / "flamingo").parts[0].removesuffix(".py")


def imported_modules(source: str) -> set[str]:
    """Dotted names of what ``source`` imports anywhere, also within functions."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides the room"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_rooms(source: str) -> set[str]:
    parts = (name.split(".") for name in imported_modules(source))
    return {p[1] for p in parts if p[0] == "flamingo" and len(p) > 1 and p[1] in MAY_IMPORT}


def long_functions(source: str) -> dict[str, int]:
    """Functions above the limit -> their lines."""
    lengths = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lengths[node.name] = node.end_lineno - node.lineno + 1
    return {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_in_one_direction(path):
    here = room(path)
    assert here in MAY_IMPORT, f"a new room: say in this file what {here} may import"
    forbidden = imported_rooms(path.read_text()) - MAY_IMPORT[here] - {here}
    assert not forbidden, f"{here} may not import {sorted(forbidden)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_package_does_not_know_its_scripts_or_tests(path):
    first = {name.split(".")[0] for name in imported_modules(path.read_text())}
    assert not first & {"experiments", "tests", "pytest", "beartype"}


@pytest.mark.parametrize("path", SOURCES + SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_short(path):
    if path.relative_to(ROOT / path.relative_to(ROOT).parts[0]).as_posix() in MAY_BE_LONG:
        pytest.skip("the training loop is one story")
    assert long_functions(path.read_text()) == {}


def test_pictures_are_drawn_in_one_room():
    drawing = {
        path.relative_to(ROOT / path.relative_to(ROOT).parts[0]).as_posix()
        for path in SOURCES + SCRIPTS
        if any(name.split(".")[0] == "matplotlib" for name in imported_modules(path.read_text()))
    }
    assert {name for name in drawing if not name.startswith("plots/")} == MAY_DRAW


def test_the_order_has_no_cycle():
    done: set[str] = set()
    while ready := {r for r, needs in MAY_IMPORT.items() if r not in done and needs <= done}:
        done |= ready
    assert done == MAY_IMPORT.keys()


def test_these_checks_see_what_they_forbid():
    source = (
        "def f():\n    from flamingo.evaluation import runner\n    import flamingo.model.media\n"
    )
    assert imported_rooms(source) == {"evaluation", "model"}
    assert imported_rooms("from flamingo import data\nfrom flamingo import __version__") == {"data"}
    for lines, expected in ((80, {}), (81, {"f": 81})):
        body = "    x = 1\n" * (lines - 1)
        assert long_functions(f"class A:\n  def f(self):\n{body}") == expected
