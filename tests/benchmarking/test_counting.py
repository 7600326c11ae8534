"""FLOPs and bytes against hand counts, torch's counter and the plan's formulas."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flamingo.benchmarking.bare import BareLM
from flamingo.benchmarking.counting import Counted, count, peak_memory
from flamingo.benchmarking.ours import Ours
from flamingo.benchmarking.planned import planned_flops
from flamingo.benchmarking.roofline import Machine, roof
from flamingo.benchmarking.timing import Run
from flamingo.benchmarking.work import FeatureShape, Tokens, training_work
from flamingo.benchmarking.world import build_ours
from flamingo.model.processor import prepare_tokenizer
from flamingo.testing import VOCABULARY, tiny_language_model, tiny_tokenizer

TOKENS = Tokens(VOCABULARY, VOCABULARY, VOCABULARY + 1)


def test_a_product_is_counted_by_unit():
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    counted = count(Run(lambda _: a @ b, units=2))
    assert counted == Counted(2 * 3 * 5 * 7 / 2, 4 * (15 + 35 + 21) / 2)


def test_views_move_nothing():
    a = torch.ones(4, 4)
    assert count(Run(lambda _: a.T.reshape(2, 2, 4)[0])).bytes <= 2 * 64  # one copy at most


def test_a_linear_layer_on_rows_of_tokens_moves_its_operands_and_its_result():
    layer, x = nn.Linear(8, 6, bias=False), torch.randn(2, 5, 8)
    assert count(Run(lambda _: layer(x))).bytes == 4 * (2 * 5 * 8 + 8 * 6 + 2 * 5 * 6)


@pytest.mark.parametrize(
    ("read", "ids"),
    [
        (lambda table, ids: functional.embedding(ids, table), torch.tensor([3, 1, 999])),
        (lambda table, ids: table[ids], torch.tensor([3, 1, 999])),
        (lambda table, ids: table.index_select(0, ids), torch.tensor([3, 1, 999])),
        (lambda table, ids: table.gather(0, ids), torch.arange(48).reshape(3, 16)),
    ],
    ids=["embedding", "index", "index_select", "gather"],
)
def test_of_a_table_only_what_is_asked_for_is_read(read, ids):
    table = torch.randn(1000, 16)
    result = 4 * 3 * 16
    assert count(Run(lambda _: read(table, ids))).bytes == ids.nbytes + 2 * result


def test_fused_attention_moves_what_it_is_given_and_gives():
    query = torch.randn(1, 2, 128, 64)
    run = Run(lambda _: functional.scaled_dot_product_attention(query, query, query))
    with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        fused = count(run).bytes
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        plain = count(run).bytes
    log_sums, scores = 4 * 2 * 128, 4 * 2 * 128 * 128
    assert fused == pytest.approx(4 * query.nbytes, abs=log_sums)
    assert plain >= 4 * query.nbytes + 4 * scores  # written and read by product and softmax


def test_attention_counts_as_its_two_products():
    query = torch.randn(1, 2, 8, 4)
    run = Run(lambda _: functional.scaled_dot_product_attention(query, query, query))
    assert count(run).flops == 2 * (2 * 2 * 8 * 8 * 4)


def test_backward_is_counted_as_torch_counts_it():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(5, 6)
    with FlopCounterMode(display=False) as expected:
        model(x).sum().backward()
    assert count(Run(lambda _: model(x).sum().backward())).flops == expected.get_total_flops()


@pytest.mark.parametrize("who", ["bare", "ours"])
def test_a_training_step_counts_what_the_plan_says(who):
    work = training_work(
        TOKENS,
        FeatureShape(patches=9, dim=16),
        images=[2, 2],  # the same share of text each: no padding among readers
        length=24,
        padded=3,
        generator=torch.Generator().manual_seed(0),
    )
    ours = build_ours(tiny_language_model(), every=2, vision_dim=16)
    tokenizer = prepare_tokenizer(tiny_tokenizer(), VOCABULARY)
    contender = (
        BareLM(tiny_language_model(), TOKENS)
        if who == "bare"
        else Ours(ours, tokenizer, torch.float32)
    )
    run = contender.training_step(work)
    run.prepare()
    planned = planned_flops(contender, work, ours)
    assert count(run).flops == pytest.approx(planned, rel=0.01)


def test_the_peak_is_what_a_call_needs_beyond_what_was_there():
    mib = 2**20
    peak = peak_memory(Run(lambda _: torch.ones(64 * mib, dtype=torch.uint8)), torch.device("cpu"))
    if peak is None:
        pytest.skip("only Linux tells the peak of a process")
    assert 60 * mib < peak < 90 * mib


def test_the_roof_is_the_slower_of_computing_and_moving():
    machine = Machine(flops=100.0, bytes=10.0)
    computing = roof(Counted(flops=200.0, bytes=1.0), 4.0, machine)
    assert (computing.flops, computing.of_peak, computing.of_roof) == (50.0, 0.5, 0.5)
    moving = roof(Counted(flops=1.0, bytes=30.0), 6.0, machine)
    assert moving.of_roof == 0.5
