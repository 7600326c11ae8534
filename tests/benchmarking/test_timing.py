"""The order in which runs take turns, and what happens to those that are slow or fail."""

import weakref
from types import SimpleNamespace

import pytest
import torch

from flamingo.benchmarking import timing
from flamingo.benchmarking.timing import Effort, Run, alternate

CPU = torch.device("cpu")


def recorded(names, **effort):
    calls: list[str] = []
    runs = {name: Run(lambda _, name=name: calls.append(name)) for name in names}
    defaults = {"rounds": 2, "warmup": 1, "slow_seconds": 60.0, "slow_rounds": 1}
    seconds, failed = alternate(runs, Effort(**(defaults | effort)), CPU)
    assert not failed
    return calls, seconds


def test_runs_take_turns_and_the_warm_up_does_not_count():
    calls, seconds = recorded("ABC")
    assert "".join(calls) == "ABC" * 3
    assert {name: len(own) for name, own in seconds.items()} == {"A": 2, "B": 2, "C": 2}


def test_slow_runs_leave_after_their_rounds():
    calls, seconds = recorded("AB", rounds=3, slow_seconds=0.0, slow_rounds=2)
    assert "".join(calls) == "AB" * 3
    assert {name: len(own) for name, own in seconds.items()} == {"A": 2, "B": 2}


def test_preparing_is_not_timed_and_its_result_is_handed_over(monkeypatch):
    """By a clock that goes on while something is done, and at no other time."""
    clock = [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def prepare() -> str:
        clock[0] += 50
        return "state"

    seen: list[str] = []

    def call(state: str) -> None:
        clock[0] += 3
        seen.append(state)

    seconds, _ = alternate({"A": Run(call, prepare, units=2)}, Effort(1, 0, 60.0, 1), CPU)
    assert seen == ["state"]
    assert seconds == {"A": [1.5]}


def test_a_peer_that_raises_leaves_and_says_why():
    def fails(_: None) -> None:
        raise RuntimeError("no such thing")

    runs = {"A": Run(lambda _: None), "peer": Run(fails)}
    seconds, failed = alternate(runs, Effort(2, 1, 60.0, 1), CPU, may_fail={"peer"})
    assert list(seconds) == ["A"]
    assert str(failed["peer"]) == "no such thing"
    with pytest.raises(RuntimeError, match="no such thing"):
        alternate(runs, Effort(2, 1, 60.0, 1), CPU, may_fail={"A"})


def test_what_a_failed_call_held_is_let_go():
    """On a GPU the next contender needs that memory."""
    held = []

    def fail(_) -> None:
        tensor = torch.zeros(3)
        held.append(weakref.ref(tensor))
        try:
            raise KeyError("within")
        except KeyError as error:
            raise RuntimeError("out of memory") from error

    effort = Effort(rounds=1, warmup=0, slow_seconds=60.0, slow_rounds=1)
    _, failed = alternate({"peer": Run(fail)}, effort, CPU, may_fail={"peer"})
    assert str(failed["peer"]) == "out of memory"
    assert held[0]() is None
