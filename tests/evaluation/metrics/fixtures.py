"""The data files of these tests; each names its source."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "data" / "metrics"


def read(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))
