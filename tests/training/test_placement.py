"""What a model keeps for its backward pass, and what a setting refuses."""

import pytest
import torch
from accelerate import Accelerator
from tiny_run import tiny_config, tiny_parts
from torch import nn

from flamingo.testing import FAMILIES
from flamingo.training.distributed import check_distributed
from flamingo.training.placement import place
from flamingo.training.sharding import shard


@pytest.fixture
def accelerator(monkeypatch) -> Accelerator:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return Accelerator(mixed_precision="no")


def saved_bytes(model: nn.Module, rows: int = 2, tokens: int = 64) -> int:
    """What autograd keeps between forward and backward, weights apart; a recomputed layer's input
    counts too."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    alive = []  # so that no storage takes the place of another
    image = model.config.image_token_id
    ids = torch.randint(2, 500, (rows, tokens))
    ids[:, 0] = image
    features = torch.randn(rows, 1, 1, 16, model.config.vision_dim)
    recomputed = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    stream = 4 * rows * tokens * model.language_model.config.hidden_size
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive.append(model.train()(input_ids=ids, vision_features=features).logits)
    alive[0].sum().backward()
    return sum(kept.values()) + len(recomputed) * stream


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt", "mpt", "falcon"])
def test_recomputed_activations_are_not_kept(tmp_path, accelerator, family):
    assert family in FAMILIES
    kept, gradients = [], []
    for recomputed in (False, True):
        config = tiny_config(tmp_path, gradient_checkpointing=recomputed)
        model, *_ = tiny_parts(config, family)
        place(model, config.training, accelerator)
        torch.manual_seed(0)
        kept.append(saved_bytes(model))
        gradients.append({n: p.grad for n, p in model.trainable_parameters().items()})
    assert kept[1] < kept[0] / 2
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6)


def test_packing_is_refused_before_training_where_documents_would_mix(tmp_path, accelerator):
    config = tiny_config(tmp_path, packing=1024)
    model, *_ = tiny_parts(config, "bloom")
    with pytest.raises(ValueError, match="got bloom with ALiBi.*training.packing=null"):
        place(model, config.training, accelerator)


def test_quantised_weights_are_not_cut(tmp_path, accelerator):
    model, *_ = tiny_parts(tiny_config(tmp_path))
    head = model.language_model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.to(torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="training.sharding=full: expected float.*uint8 in lang"):
        shard(model, accelerator)


def test_what_accelerate_would_shard_itself_is_refused_with_what_to_set(monkeypatch, accelerator):
    from accelerate.utils import DistributedType

    monkeypatch.setattr(type(accelerator), "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match="expected one or several plain.*FSDP.*sharding=full"):
        check_distributed(accelerator)
