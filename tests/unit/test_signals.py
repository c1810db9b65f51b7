"""SIGTERM as an exception."""

import os
import signal

import pytest

from llmtune.signals import TERMINATED, terminable

pytestmark = pytest.mark.fast


def test_sigterm_is_an_exit_within_and_what_it_was_after() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop, terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.code == TERMINATED == 143
    assert signal.getsignal(signal.SIGTERM) is before
