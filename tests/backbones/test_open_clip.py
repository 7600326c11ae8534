"""Vision towers in open_clip's format against torch's own attention on the same tensors."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from flamingo.backbones.open_clip import read_open_clip_config
from flamingo.backbones.vision import load_vision_encoder, save_vision_encoder
from flamingo.config import VisionConfig

SIZE, PATCH, LAYERS, DIM, HEAD = 32, 8, 2, 16, 8
PATCHES = (SIZE // PATCH) ** 2
VISION = {
    "image_size": SIZE,
    "layers": LAYERS,
    "width": DIM,
    "patch_size": PATCH,
    "head_width": HEAD,
}


def weights() -> dict[str, Tensor]:
    """Random tensors by open_clip's names, text tower and projection included."""
    draw = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "token_embedding.weight": (10, DIM),
        "visual.class_embedding": (DIM,),
        "visual.positional_embedding": (PATCHES + 1, DIM),
        "visual.proj": (DIM, 12),
        "visual.conv1.weight": (DIM, 3, PATCH, PATCH),
    }
    norms = ["visual.ln_pre", "visual.ln_post"]
    for i in range(LAYERS):
        block = f"visual.transformer.resblocks.{i}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * DIM, DIM),
            f"{block}.attn.in_proj_bias": (3 * DIM,),
            f"{block}.attn.out_proj.weight": (DIM, DIM),
            f"{block}.attn.out_proj.bias": (DIM,),
            f"{block}.mlp.c_fc.weight": (4 * DIM, DIM),
            f"{block}.mlp.c_fc.bias": (4 * DIM,),
            f"{block}.mlp.c_proj.weight": (DIM, 4 * DIM),
            f"{block}.mlp.c_proj.bias": (DIM,),
        }
    shapes |= {f"{norm}.{kind}": (DIM,) for norm in norms for kind in ("weight", "bias")}
    return {name: torch.randn(shape, generator=draw) * 0.3 for name, shape in shapes.items()}


def reference(state: dict[str, Tensor], images: Tensor, *, quick: bool) -> Tensor:
    """Tokens behind the last block, CLS first: open_clip's steps by torch's functions."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (DIM,), state[f"{name}.weight"], state[f"{name}.bias"])

    patches = F.conv2d(images, state["visual.conv1.weight"], stride=PATCH).flatten(2).mT
    first = state["visual.class_embedding"].expand(len(images), 1, DIM)
    x = torch.cat([first, patches], dim=1) + state["visual.positional_embedding"]
    x = norm(x, "visual.ln_pre")
    for i in range(LAYERS):
        block = f"visual.transformer.resblocks.{i}"
        attention = nn.MultiheadAttention(DIM, DIM // HEAD, batch_first=True)
        prefix = f"{block}.attn."
        attention.load_state_dict(
            {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        )
        y = norm(x, f"{block}.ln_1")
        x = x + attention(y, y, y, need_weights=False)[0]
        y = norm(x, f"{block}.ln_2")
        y = F.linear(y, state[f"{block}.mlp.c_fc.weight"], state[f"{block}.mlp.c_fc.bias"])
        y = y * torch.sigmoid(1.702 * y) if quick else F.gelu(y)
        x = x + F.linear(y, state[f"{block}.mlp.c_proj.weight"], state[f"{block}.mlp.c_proj.bias"])
    return x


def save(
    folder: Path, *, file="open_clip_model.safetensors", model=None, vision=None, preprocess=None
):
    """A folder as open_clip writes it, with changes to the sections of its configuration."""
    config = {
        "model_cfg": {"embed_dim": 12, "vision_cfg": VISION | (vision or {})} | (model or {}),
        "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]} | (preprocess or {}),
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if file.endswith(".bin"):
        torch.save(weights(), folder / file)
    else:
        save_file(weights(), folder / file)
    return folder


def load(folder: Path, **config):
    return load_vision_encoder(VisionConfig(name=str(folder), **config), dtype=torch.float32)


def images() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
@torch.no_grad()
def test_tokens_are_those_of_open_clips_steps(tmp_path: Path, file: str, quick: bool):
    encoder = load(save(tmp_path, file=file, model={"quick_gelu": True} if quick else {}))
    assert (encoder.dim, encoder.patches) == (DIM, PATCHES)
    expected = reference(weights(), images(), quick=quick)
    torch.testing.assert_close(encoder(images()), expected[:, 1:], rtol=1e-4, atol=1e-5)
    other = reference(weights(), images(), quick=not quick)
    assert not torch.allclose(encoder(images()), other[:, 1:], atol=1e-2)


def test_heads_are_64_wide_where_nothing_is_said(tmp_path: Path):
    """As in ViT-L/14's file. The weights would load with any number of heads."""
    vision = {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14}
    values = {"model_cfg": {"embed_dim": 768, "quick_gelu": True, "vision_cfg": vision}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(values))
    config = read_open_clip_config(tmp_path)
    assert (config.num_attention_heads, config.intermediate_size) == (16, 4096)


@torch.no_grad()
def test_the_last_norm_is_open_clips_when_asked_for(tmp_path: Path):
    state = weights()
    hidden = reference(state, images(), quick=False)
    expected = F.layer_norm(
        hidden, (DIM,), state["visual.ln_post.weight"], state["visual.ln_post.bias"]
    )
    actual = load(save(tmp_path), final_norm=True, keep_cls=True)(images())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_transform_has_the_folders_size_mean_and_deviation(tmp_path: Path):
    encoder = load(save(tmp_path))
    white = encoder.transform(Image.new("RGB", (50, 40), "white"))
    assert white.shape == (3, SIZE, SIZE)
    expected = torch.tensor([(1 - 0.1) / 0.4, (1 - 0.2) / 0.5, (1 - 0.3) / 0.6])
    torch.testing.assert_close(white[:, 3, 3], expected)


@torch.no_grad()
def test_saved_with_a_model_it_is_in_transformers_format_and_the_same(tmp_path: Path):
    (tmp_path / "theirs").mkdir()
    encoder = load(save(tmp_path / "theirs", model={"quick_gelu": True}))
    save_vision_encoder(encoder, tmp_path / "ours")
    again = load(tmp_path / "ours")
    assert (tmp_path / "ours" / "config.json").is_file()
    assert again.fingerprint == encoder.fingerprint
    assert torch.equal(again(images()), encoder(images()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vision": {"layers": [3, 4, 6, 3]}}, r"plain vision transformer .*layers=\[3, 4, 6, 3\]"),
        ({"vision": {"timm_model_name": "x"}}, r"plain vision transformer .*\['timm_model_name'\]"),
        ({"vision": {"layers": 3}}, "Missing key.*encoder.layers.2"),
        (
            {"preprocess": {"resize_mode": "squash"}},
            "resize_mode: expected 'shortest', got 'squash'",
        ),
    ],
)
def test_what_is_no_clip_tower_is_refused(tmp_path: Path, changes, message: str):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load(save(tmp_path, **changes))


def test_a_name_that_no_tower_has_and_missing_weights_are_named(tmp_path: Path):
    folder = save(tmp_path)
    save_file(weights() | {"visual.attn_pool.query": torch.zeros(2)}, folder / "x.safetensors")
    (folder / "x.safetensors").rename(folder / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match=r"CLIP vision tower, got visual\.attn_pool\.query"):
        load(folder)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"expected one of open_clip_model\.safetensors, .* none"):
        load(folder)


def test_a_pickle_of_more_than_tensors_is_refused(tmp_path: Path):
    folder = save(tmp_path)
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(weights() | {"visual.args": Path("x")}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match="a pickle that would run code"):
        load(folder)
