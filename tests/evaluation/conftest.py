"""One tiny reader and its prompts for the tests of a file."""

from __future__ import annotations

import pytest

from flamingo.evaluation.scoring import Reader
from flamingo.types import TokenizedSequence

from . import tiny


@pytest.fixture(scope="module")
def reader() -> Reader:
    return tiny.reader()


@pytest.fixture(scope="module")
def prompts(reader: Reader) -> list[TokenizedSequence]:
    return tiny.prompts(reader)
