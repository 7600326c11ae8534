"""Models of other projects, to and from ours: their weights, their prompts, their evaluators."""

from flamingo.interop.idefics import load_idefics
from flamingo.interop.open_flamingo import load_open_flamingo

__all__ = ["load_idefics", "load_open_flamingo"]
