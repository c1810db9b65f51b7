"""Work beside the training: one piece at a time, no failure lost, and left where the process ends at once."""

import threading

import pytest

from llmtune.training.background import Background

pytestmark = pytest.mark.fast


def _fail() -> None:
    raise RuntimeError("a full disk")


def test_a_failure_is_raised_once_by_whoever_waits():
    background = Background()
    background.start(_fail)
    background.let_finish()
    with pytest.raises(RuntimeError, match="a full disk"):
        background.wait()
    background.wait()


def test_what_is_left_is_waited_for_by_the_next_one_alone():
    background, may_end, done = Background(), threading.Event(), []
    background.start(lambda: done.append(may_end.wait(60)))
    background.leave()
    background.wait()
    background.let_finish()
    assert done == []
    threading.Timer(0.1, may_end.set).start()
    Background()
    assert done == [True]


def test_the_failure_of_what_is_left_is_nobodys():
    background = Background()
    background.start(_fail)
    background.leave()
    background.wait()
    Background().wait()
