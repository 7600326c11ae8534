"""The public classes, registered with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from flamingo.model.configuration import FlamingoConfig
from flamingo.model.flamingo import FlamingoForConditionalGeneration
from flamingo.model.processor import FlamingoProcessor

__all__ = ["FlamingoConfig", "FlamingoForConditionalGeneration", "FlamingoProcessor"]

AutoConfig.register(FlamingoConfig.model_type, FlamingoConfig)
AutoModelForCausalLM.register(FlamingoConfig, FlamingoForConditionalGeneration)
AutoModelForImageTextToText.register(FlamingoConfig, FlamingoForConditionalGeneration)
AutoProcessor.register(FlamingoConfig, FlamingoProcessor)
