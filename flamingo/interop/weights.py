"""Weights in a file, read a tensor at a time: a conversion never holds two copies of a model."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


class Weights(Mapping[str, Tensor]):
    """Tensors by name, read when they are asked for; their shapes are known without reading."""

    shapes: Mapping[str, tuple[int, ...]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class SafetensorsWeights(Weights):
    """A safetensors file."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")
        self.shapes = {
            name: tuple(self._file.get_slice(name).get_shape())
            for name in self._file.keys()  # noqa: SIM118
        }

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._file.get_tensor(name)


class TorchWeights(Weights):
    """A file of ``torch.save``, its tensors mapped from the disk."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self.shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]


def open_weights(path: Path) -> Weights:
    """The tensors of a ``.safetensors`` file, or of one that ``torch.save`` wrote.

    A checkpoint of a training run (``{"model_state_dict": ...}``) is opened as the model in it.

    Raises ``ValueError`` for a file that is neither, and for a pickle that holds more than tensors
    and plain values: to read that is to run code from the file.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint: expected a file of weights, found none at {path}")
    if path.suffix == ".safetensors":
        try:
            return SafetensorsWeights(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: expected a safetensors file, got {error}") from error
    content = _load(path)
    for wrapper in ("model_state_dict", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    tensors = content if isinstance(content, dict) else {}
    strange = [str(name) for name, value in tensors.items() if not isinstance(value, Tensor)]
    if not tensors or strange:
        got = f"also {strange[:5]}" if strange else type(content).__name__
        raise ValueError(f"{path}: expected tensors by name, got {got}")
    return TorchWeights(tensors)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: expected tensors and plain values alone, got a pickle that would run code "
            f"when it is read, or no pickle at all: {str(error).splitlines()[0]}"
        ) from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: expected a whole file of torch.save, got {error}") from error


def _is_zip(path: Path) -> bool:
    """Files of torch before 1.6 are no archives: these alone are read whole."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
