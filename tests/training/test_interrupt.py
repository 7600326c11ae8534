"""The first signal is a wish to stop, and Python's handlers are lent, not taken."""

import os
import signal

import pytest

from flamingo.training.interrupt import SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    monkeypatch.setattr(os, "write", lambda *_: 0)


@pytest.mark.parametrize("first", SIGNALS)
def test_ctrl_c_after_any_signal_interrupts_at_once_and_another_signal_is_passed_over(first):
    with StopRequest() as stop:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == first
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stop.signal == first


def test_handlers_are_those_of_before_whatever_ends_it():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ZeroDivisionError), StopRequest() as stop:
        assert [signal.getsignal(number) for number in SIGNALS] == [stop._note] * len(SIGNALS)
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in SIGNALS] == before
