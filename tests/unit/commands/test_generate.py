"""`generate` as a person meets it: what it asks for, and a chat that outlives what doesn't fit."""

import io
from types import SimpleNamespace

import pytest

from llmtune.commands import generate
from llmtune.config.run import RunConfig
from llmtune.config.validate import to_run_config
from llmtune.errors import ConfigError, ModelError, UserError

pytestmark = pytest.mark.fast

ROOM = 12
"""Letters that the model below reads."""


@pytest.fixture
def config() -> RunConfig:
    model = {"name": "tiny", "source": "folder", "path": "tests/assets/tiny_llama"}
    return to_run_config({"model": model, "data": {"source": "embedded"}})


class Writer:
    """Answers with a number, and reads few letters."""

    def __init__(self, has_chat_template: bool = True, broken: bool = False) -> None:
        self.has_chat_template = has_chat_template
        self.broken = broken
        self.seen: list[list[str]] = []

    def write(self, prompt, asked):
        self._check([prompt])
        return [f"[{len(self.seen)}]"]

    def answer(self, messages, asked):
        texts = [message["content"] for message in messages]
        self._check(texts)
        assert [message["role"] for message in messages][::2] == ["user"] * (len(messages) // 2 + 1)
        return f"[{len(self.seen)}]"

    def _check(self, texts):
        if self.broken:
            raise ModelError("no such model")
        if sum(map(len, texts)) > ROOM:
            raise UserError("too long")
        self.seen.append(texts)


def chat(writer, config, monkeypatch, *lines) -> int:
    typed = iter(lines)

    def read(_):
        line = next(typed, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", read)
    return generate._chat(writer, config)


def test_a_grown_conversation_loses_its_oldest_turns_and_says_so_once(config, monkeypatch, capsys) -> None:
    writer = Writer()
    assert chat(writer, config, monkeypatch, "aaaa", "bbbb", "cccc", "dddd") == 0
    assert writer.seen == [["aaaa"], ["aaaa", "[1]", "bbbb"], ["bbbb", "[2]", "cccc"], ["cccc", "[3]", "dddd"]]
    assert capsys.readouterr().out.count("its oldest turns are left out") == 1


def test_a_line_that_fits_nowhere_is_taken_back(config, monkeypatch, capsys) -> None:
    writer = Writer()
    assert chat(writer, config, monkeypatch, "aa", "x" * (ROOM + 1), "bb") == 0
    assert writer.seen == [["aa"], ["aa", "[1]", "bb"]]
    shown = capsys.readouterr().out
    assert shown.count("too long") == 1
    assert "left out" not in shown


def test_without_a_chat_template_a_long_line_does_not_end_it(config, monkeypatch, capsys) -> None:
    writer = Writer(has_chat_template=False)
    assert chat(writer, config, monkeypatch, "x" * (ROOM + 1), "bb") == 0
    assert writer.seen == [["bb"]]
    assert capsys.readouterr().out.count("too long") == 1


def test_a_model_that_cannot_be_loaded_ends_it(config, monkeypatch) -> None:
    with pytest.raises(ModelError):
        chat(Writer(broken=True), config, monkeypatch, "a", "b")


def test_without_a_prompt_it_says_that_standard_input_is_not_read(config, monkeypatch) -> None:
    monkeypatch.setattr(generate, "sys", SimpleNamespace(stdin=io.StringIO("hi\n")))
    with pytest.raises(ConfigError, match=r"generate\.prompt: is missing; set it.*standard input isn't read"):
        generate.run(config)
