"""Models of other projects, to and from ours: their weights, their prompts, their evaluators."""

from flamingo.interop.open_flamingo import load_open_flamingo

__all__ = ["load_open_flamingo"]
