from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from flamingo.choices import Collection
from flamingo.config import BindingSourceConfig, DataConfig, LanguageConfig, RunConfig, VisionConfig
from flamingo.testing import synthetic_images, tiny_vision_encoder

SCRIPT = Path(__file__).parents[2] / "experiments" / "cache_features.py"


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    for image in synthetic_images(36):
        _, name, index = image.key.split("/")
        (tmp_path / "shapes" / name).mkdir(parents=True, exist_ok=True)
        image.open().save(tmp_path / "shapes" / name / f"{index}.png")
    binding = BindingSourceConfig(
        collection=Collection.folder, path=str(tmp_path / "shapes"), held_out=4
    )
    return RunConfig(
        name="tiny",
        vision=VisionConfig(name="tiny"),
        language=LanguageConfig(name="tiny"),
        data=DataConfig(binding=binding, feature_cache=str(tmp_path / "cache")),
    )


def test_the_training_images_of_the_sources_are_cached(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerFast,
    capsys: pytest.CaptureFixture[str],
) -> None:
    encoder = tiny_vision_encoder()
    main = runpy.run_path(str(SCRIPT))["main"]
    main.__globals__["load_tokenizer"] = lambda _: tokenizer
    main.__globals__["load_vision_encoder"] = lambda _: encoder
    main(config)
    # 12 classes of 3, 4 held out, and the blank one
    assert "features of 25 images" in capsys.readouterr().out
    assert config.data.feature_cache is not None
    index = next(Path(config.data.feature_cache).glob("*/index.bin"))
    assert index.stat().st_size == 25 * 32


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataConfig(), "data: expected a source whose images are known beforehand .* got none"),
        (DataConfig(cache_features=False), "data.cache_features: expected true"),
    ],
)
def test_where_nothing_would_be_cached_it_is_said(
    config: RunConfig, tokenizer: PreTrainedTokenizerFast, data: DataConfig, message: str
) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    main.__globals__["load_tokenizer"] = lambda _: tokenizer
    with pytest.raises(ValueError, match=message):
        main(replace(config, data=data))


def test_a_corrupt_image_ends_it_with_a_message(
    config: RunConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert config.data.binding is not None and config.data.binding.path is not None
    for path in Path(config.data.binding.path).glob("*/*.png"):
        path.write_bytes(b"broken")
    main = runpy.run_path(str(SCRIPT))["main"]
    main.__globals__["load_tokenizer"] = lambda _: tokenizer
    main.__globals__["load_vision_encoder"] = lambda _: tiny_vision_encoder()
    with pytest.raises(ValueError, match=r"\.png: expected an image"):
        main(config)
