"""Against OpenFlamingo 2.0.1's own outputs (tests/data/open_flamingo/README.md)."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from flamingo.interop import load_open_flamingo
from flamingo.interop.moves import How, Move, Part
from flamingo.interop.open_flamingo_file import CheckpointFile, read_checkpoint
from flamingo.interop.open_flamingo_names import LanguageModelNames
from flamingo.model.flamingo import FlamingoForConditionalGeneration

DATA = Path(__file__).parent.parent / "data" / "open_flamingo"
FAMILIES = ("gpt_neox", "llama", "opt", "mpt")
TOLERANCE = 1e-5
"""The issue of parity is 1e-4; measured differences are below 5e-6."""


def language_model(family: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(DATA / family / "language_model")


def meta(family: str) -> SimpleNamespace:
    return SimpleNamespace(**json.loads((DATA / family / "meta.json").read_text()))


def load(
    family: str, checkpoint: Path | None = None, **changes: object
) -> FlamingoForConditionalGeneration:
    facts = meta(family)
    options = {
        "language_model": DATA / family / "language_model",
        "cross_attn_every_n_layers": facts.cross_attn_every_n_layers,
        "image_token_id": facts.image_token_id,
        "end_of_chunk_token_id": facts.end_of_chunk_token_id,
        **changes,
    }
    return load_open_flamingo(
        checkpoint or DATA / family / "checkpoint.safetensors",
        **options,  # type: ignore[arg-type]
    )


def weights(family: str) -> dict[str, Tensor]:
    return load_file(DATA / family / "checkpoint.safetensors")


def expected(family: str) -> dict[str, Tensor]:
    return load_file(DATA / family / "expected.safetensors")


# ---------------------------------------------------------------------------- parity


@pytest.mark.parametrize("family", FAMILIES)
def test_latents_are_open_flamingos(family: str) -> None:
    truth = expected(family)
    with torch.no_grad():
        latents = load(family).encode_media(vision_features=truth["vision_features"])
    assert (latents - truth["latents"]).abs().max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", ["left", "right"])
def test_logits_of_a_padded_batch_are_open_flamingos(family: str, padding: str) -> None:
    truth = expected(family)
    mask = truth[f"{padding}.attention_mask"]
    with torch.no_grad():
        out = load(family)(
            truth[f"{padding}.input_ids"],
            attention_mask=mask,
            vision_features=truth["vision_features"],
        )
    difference = (out.logits - truth[f"{padding}.logits"]).abs()[mask.bool()]
    assert difference.max() < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_answers_of_rows_alone_are_open_flamingos(family: str) -> None:
    truth, model = expected(family), load(family)
    facts = meta(family)
    for row in range(3):
        ids, media = truth[f"alone.{row}.input_ids"], truth["vision_features"][row : row + 1]
        with torch.no_grad():
            logits = model(ids, vision_features=media).logits
        assert (logits - truth[f"alone.{row}.logits"]).abs().max() < TOLERANCE
        answer = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            vision_features=media,
            max_new_tokens=6,
            suppress_tokens=[facts.end_of_chunk_token_id],
            eos_token_id=-1,
            use_cache=True,
        )
        assert answer.tolist() == truth[f"alone.{row}.greedy"].tolist()


def test_loaded_in_float16_it_can_be_saved_and_restored(tmp_path: Path) -> None:
    model = load("llama", dtype=torch.float16)
    assert {p.dtype for p in model.language_model.parameters()} == {torch.float16}
    model.save_pretrained(tmp_path)
    restored = FlamingoForConditionalGeneration.from_pretrained(tmp_path)
    assert restored.config.language_fingerprint == load("llama").config.language_fingerprint


# ---------------------------------------------------------------------------- layouts


def version_1(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Blocks under their names of version 1 alone."""
    block = "lang_encoder.gpt_neox.layers."
    return {
        "lang_encoder.gated_cross_attn_layers."
        + name.removeprefix(block).replace(".gated_cross_attn_layer", "")
        if ".gated_cross_attn_layer." in name
        else name: tensor
        for name, tensor in state.items()
    }


def otter(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if name.startswith("perceiver.layers.") and parts[3] == "0":
            del parts[3]
        elif name.startswith("perceiver.layers."):
            parts[3] = "feed_forward"
        elif "ff" in parts:
            parts[parts.index("ff")] = "feed_forward"
        renamed[".".join(parts)] = tensor
    return renamed


def wrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in state.items()}


def activation_checkpointed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    infix = "gated_cross_attn_layer._checkpoint_wrapped_module."
    return {n.replace("gated_cross_attn_layer.", infix): t for n, t in state.items()}


def both_versions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return version_1(state) | state


def with_the_frozen_model(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """All that a whole state dict has, under both names of each frozen tensor."""
    frozen = language_model("gpt_neox").state_dict()
    layers = "gpt_neox.layers."
    inside = {n.removeprefix(layers): t for n, t in frozen.items() if n.startswith(layers)}
    return {
        **state,
        **{f"lang_encoder.{n}": t for n, t in frozen.items() if not n.startswith(layers)},
        **{f"lang_encoder.old_decoder_blocks.{n}": t for n, t in inside.items()},
        **{
            f"lang_encoder.{layers}{n.replace('.', '.decoder_layer.', 1)}": t
            for n, t in inside.items()
        },
        "lang_encoder.gpt_neox.layers.0.decoder_layer.attention.bias": torch.ones(1, 1, 8, 8),
        "lang_encoder.gpt_neox.layers.0.decoder_layer.attention.masked_bias": torch.tensor(-1e9),
        "lang_encoder.gpt_neox.layers.0.decoder_layer.attention.rotary_emb.inv_freq": torch.ones(2),
        "vision_encoder.class_embedding": torch.ones(24),
    }


@pytest.mark.parametrize(
    "layout",
    [version_1, otter, wrapped, activation_checkpointed, both_versions, with_the_frozen_model],
)
def test_every_layout_is_the_same_model(
    layout: Callable[[dict[str, Tensor]], dict[str, Tensor]], tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    relaid = layout(weights("gpt_neox"))
    assert layout is both_versions or set(relaid) != set(weights("gpt_neox"))
    torch.save(relaid, path)
    direct, other = load("gpt_neox"), load("gpt_neox", path)
    for name, parameter in direct.trainable_parameters().items():
        assert torch.equal(parameter, other.trainable_parameters()[name]), name


def test_a_folder_of_shards_is_one_checkpoint(tmp_path: Path) -> None:
    """As Otter's models are on the hub, with the whole language model among the tensors."""
    state = otter(with_the_frozen_model(weights("gpt_neox")))
    names = sorted(state)
    shards = {"one.bin": names[::2], "two.bin": names[1::2]}
    for file, own in shards.items():
        torch.save({name: state[name] for name in own}, tmp_path / file)
    index = {"weight_map": {name: file for file, own in shards.items() for name in own}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    direct, other = load("gpt_neox"), load("gpt_neox", tmp_path)
    for name, parameter in direct.trainable_parameters().items():
        assert torch.equal(parameter, other.trainable_parameters()[name]), name


def test_a_training_runs_checkpoint_is_opened_as_the_model_in_it(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 3, "model_state_dict": wrapped(weights("opt")), "lr": {}}, path)
    truth = expected("opt")
    with torch.no_grad():
        latents = load("opt", path).encode_media(vision_features=truth["vision_features"])
    assert (latents - truth["latents"]).abs().max() < TOLERANCE


def test_files_of_old_versions_of_torch_are_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(weights("mpt"), path, _use_new_zipfile_serialization=False)
    assert load("mpt", path).config.vision_dim == 24


# ---------------------------------------------------------------------------- what is refused


def saved(state: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "checkpoint.safetensors"
    save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    return path


def test_missing_left_over_and_reshaped_tensors_are_listed(tmp_path: Path) -> None:
    state = weights("llama")
    block = "lang_encoder.model.layers.3.gated_cross_attn_layer"
    del state["perceiver.layers.2.0.to_q.weight"], state[f"{block}.ff_gate"]
    state["perceiver.media_time_embs"] = torch.zeros(4, 1, 24)
    state["perceiver.norm.weight"] = torch.zeros(25)
    with pytest.raises(ValueError) as caught:
        load("llama", saved(state, tmp_path))
    told = str(caught.value)
    assert f"missing ['perceiver.layers.2.0.to_q.weight', '{block}.ff_gate']" in told
    assert "left over ['perceiver.media_time_embs']" in told
    assert "['perceiver.norm.weight: expected (24,), got (25,)']" in told


def test_another_interval_of_blocks_lists_those_in_the_way() -> None:
    with pytest.raises(ValueError, match=r"missing \[.*layers.0.gated_cross_attn_layer.attn_gate"):
        load("gpt_neox", cross_attn_every_n_layers=1)
    with pytest.raises(ValueError, match=r"left over \[.*layers.1.gated_cross_attn_layer.attn_ga"):
        load("gpt_neox", cross_attn_every_n_layers=4)


def test_a_checkpoint_of_another_family_is_refused() -> None:
    with pytest.raises(
        ValueError, match="gated_cross_attn_layer for a language model with .* gpt_neox.layers"
    ):
        load("gpt_neox", DATA / "opt" / "checkpoint.safetensors")


class Intruder:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from the file",)


def test_a_pickle_that_would_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({**weights("opt"), "args": Intruder()}, path)
    with pytest.raises(ValueError, match="a pickle that would run code"):
        load("opt", path)
    assert "code from the file" not in capsys.readouterr().out


def test_a_truncated_file_and_a_missing_one_are_named(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(weights("opt"), path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=rf"{path}: expected a whole file"):
        load("opt", path)
    with pytest.raises(ValueError, match="expected a file of weights, found none at"):
        load("opt", tmp_path / "nothing.pt", language_model=tmp_path / "not looked for")


def test_two_names_of_one_tensor_must_agree(tmp_path: Path) -> None:
    state = weights("gpt_neox")
    alias = "lang_encoder.gated_cross_attn_layers.1.attn_gate"
    state[alias] = state["lang_encoder.gpt_neox.layers.1.gated_cross_attn_layer.attn_gate"] + 1
    with pytest.raises(ValueError, match="two names of one tensor"):
        load("gpt_neox", saved(state, tmp_path))


def test_another_language_models_frozen_weights_are_refused(tmp_path: Path) -> None:
    state = with_the_frozen_model(weights("gpt_neox"))
    name = "lang_encoder.gpt_neox.final_layer_norm.weight"
    state[name] = state[name] + 0.5
    path = tmp_path / "checkpoint.pt"
    torch.save(state, path)
    with pytest.raises(ValueError, match=rf"1 tensors, such as \['{name}'\]"):
        load("gpt_neox", path)


def test_another_width_or_token_id_is_refused() -> None:
    with pytest.raises(ValueError, match="vision_dim: expected the checkpoint's 24, got 32"):
        load("opt", vision_dim=32)
    with pytest.raises(ValueError, match="image_token_id: expected an id below .* 96 rows, got 96"):
        load("opt", image_token_id=96)


# ---------------------------------------------------------------------------- rows


@pytest.mark.parametrize("family", ["gpt_neox", "opt"])
def test_new_rows_are_the_checkpoints_and_differing_frozen_rows_are_told(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = weights(family)
    (name,) = [n for n in state if n.endswith(("embed_in.weight", "embed_tokens.weight"))]
    state.pop("lang_encoder.lm_head.weight", None)
    state[name] = state[name].clone()
    state[name][[5, 7, 95]] += 0.25
    with caplog.at_level(logging.WARNING):
        model = load(family, saved(state, tmp_path))
    (told,) = [record.getMessage() for record in caplog.records]
    assert "2 rows of the frozen vocabulary differ" in told and "[5, 7]" in told
    assert "0.25 (2 by more than bfloat16 rounds)" in told
    assert torch.equal(model.new_tokens.input, state[name][[94, 95]])
    own = language_model(family).get_input_embeddings().weight
    assert torch.equal(model.language_model.get_input_embeddings().weight, own)


def test_the_head_of_a_released_gpt_neox_is_read_under_its_former_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """transformers before 5 had ``embed_out``, which OpenFlamingo keeps: "embed" is in its name."""
    state = weights("gpt_neox")
    head = language_model("gpt_neox").get_output_embeddings().weight.detach().clone()
    head[[3, 94, 95]] += 0.25
    with caplog.at_level(logging.WARNING):
        model = load("gpt_neox", saved(state | {"lang_encoder.embed_out.weight": head}, tmp_path))
    (told,) = [record.getMessage() for record in caplog.records]
    assert "1 rows of the frozen vocabulary's output matrix differ" in told and "[3]" in told
    assert model.new_tokens.output is not None
    assert torch.equal(model.new_tokens.output, head[[94, 95]])


def test_another_language_model_is_suspected_by_its_rows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = language_model("gpt_neox")
    with torch.no_grad():
        other.get_input_embeddings().weight.normal_()
    with caplog.at_level(logging.WARNING):
        load("gpt_neox", language_model=other)
    assert "this may be another language model than it was trained with: 94 rows" in caplog.text


def test_rows_that_bfloat16_rounded_are_told_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = weights("gpt_neox")
    name = "lang_encoder.gpt_neox.embed_in.weight"
    state[name] = state[name].bfloat16()
    with caplog.at_level(logging.WARNING):
        load("gpt_neox", saved(state, tmp_path))
    assert "94 rows of the frozen vocabulary differ" in caplog.text
    assert "(0 by more than bfloat16 rounds)" in caplog.text


def test_rows_beyond_the_vocabulary_all_become_new_tokens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LLaMA's tokenizer grew by <|endofchunk|>, <image> and <PAD>: ids behind its 32,000."""
    state = weights("llama")
    name = "lang_encoder.model.embed_tokens.weight"
    state[name] = torch.cat([state[name], torch.randn(3, 32)])
    with caplog.at_level(logging.WARNING):
        model = load("llama", saved(state, tmp_path), image_token_id=97, end_of_chunk_token_id=96)
    assert "no output rows for the new tokens [96, 97, 98]" in caplog.text
    assert model.config.new_token_ids == [96, 97, 98]
    assert torch.equal(model.new_tokens.input, state[name][96:])
    logits = model(torch.tensor([[1, 98, 96]])).logits
    assert logits.shape[-1] == 99
    head = language_model("llama").get_output_embeddings().weight
    assert torch.allclose(model.new_tokens.output_rows, head.mean(dim=0).expand(3, -1))


def test_padding_of_the_vocabulary_that_was_cut_off_is_never_generated(tmp_path: Path) -> None:
    """OpenFlamingo cut a matrix of 50,432 rows down to the tokenizer's 50,280."""
    state = weights("gpt_neox")
    name = "lang_encoder.gpt_neox.embed_in.weight"
    state[name] = state[name][:90]
    model = load("gpt_neox", saved(state, tmp_path), image_token_id=89, end_of_chunk_token_id=88)
    model.save_pretrained(tmp_path / "saved")
    restored = FlamingoForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert restored.never_generated == [89, 90, 91, 92, 93, 94, 95]
    for own in (model, restored):
        ids = own.generate(torch.tensor([[3, 4]]), max_new_tokens=20, eos_token_id=-1)
        assert int(ids.max()) < 90 and not (ids == 89).any()


def test_what_went_where_is_told() -> None:
    language = language_model("opt")
    stored = read_checkpoint(DATA / "opt" / "checkpoint.safetensors")
    file = CheckpointFile.of(stored, LanguageModelNames.of(language))
    moves = {move.source[0]: move for move in file.moves(2)}
    block = "lang_encoder.model.decoder.layers.3.gated_cross_attn_layer"
    assert moves.keys() == weights("opt").keys()
    assert moves[f"{block}.ff.3.weight"] == Move(
        (f"{block}.ff.3.weight",),
        "cross_attention.3.feed_forward.3.weight",
        Part.trained,
        How.unchanged,
        (32, 128),
    )
    rows = moves["lang_encoder.model.decoder.embed_tokens.weight"]
    assert (rows.target, rows.how, rows.shape) == ("new_tokens.input", How.rows, (2, 32))
    assert moves["lang_encoder.model.decoder.embed_positions.weight"].part is Part.unused
    assert moves["lang_encoder.lm_head.weight"].part is Part.copy


# ---------------------------------------------------------------------------- our own format


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_is_saved_and_restored_in_our_format(family: str, tmp_path: Path) -> None:
    model, truth = load(family), expected(family)
    model.save_pretrained(tmp_path)
    restored = FlamingoForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = restored(truth["alone.1.input_ids"], vision_features=truth["vision_features"][1:2])
    assert (logits.logits - truth["alone.1.logits"]).abs().max() < TOLERANCE
