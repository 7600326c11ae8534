"""Models and harnesses of other projects: reading theirs, and being read by theirs."""

from flamingo.interop.idefics import load_idefics
from flamingo.interop.open_flamingo import load_open_flamingo

__all__ = ["load_idefics", "load_open_flamingo"]
