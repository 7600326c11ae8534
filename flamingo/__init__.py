"""Few-shot visual question answering with Flamingo-style models.

The model's classes are importable from here and registered with transformers' Auto classes; they
are loaded on first use, so that ``import flamingo`` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flamingo.model.configuration import FlamingoConfig
    from flamingo.model.flamingo import FlamingoForConditionalGeneration
    from flamingo.model.processor import FlamingoProcessor

__version__ = "0.1.0"
__all__ = ["FlamingoConfig", "FlamingoForConditionalGeneration", "FlamingoProcessor"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("flamingo.model.auto"), name)
    raise AttributeError(f"module 'flamingo' has no attribute {name!r}")
