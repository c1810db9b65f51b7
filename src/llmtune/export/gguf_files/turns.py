"""A chat template as fixed text around the turns, which Ollama's Go templates can say as well."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
_MARKS = ("<<S>>", "<<A>>", "<<B>>", "<<C>>", "<<D>>", "<<E>>")
_ROLES = ("system", "user", "assistant", "user", "assistant", "user")


class NotExpressible(Exception):
    """A chat template is more than fixed text around the turns; the message says how, after `it`."""


@dataclass(frozen=True, kw_only=True)
class Turns:
    """Fixed text around each turn of a conversation."""

    without_system: str
    """What stands before the first turn where no system turn is given."""
    around: dict[str, tuple[str, str]]
    """By role, what stands before and after its content; a role that isn't there is left out."""
    answer: str
    """What the answer is written after."""
    strips: bool = False
    """Whether training's template strips the spaces around a content, which this doesn't."""

    def render(self, messages: Messages) -> str:
        """A conversation up to where its answer begins, as `go_template` renders it."""
        given = "system" in self.around and any(one["role"] == "system" and one["content"] for one in messages)
        parts = [] if given else [self.without_system]
        for message in messages:
            if message["role"] in self.around:
                before, after = self.around[message["role"]]
                parts += [before, message["content"], after]
        return "".join([*parts, self.answer])

    def go_template(self) -> str:
        """The same in Go's text/template over Ollama's `.System` and `.Messages`."""
        parts = []
        if self.without_system and "system" in self.around:
            parts.append(f"{{{{ if not .System }}}}{_go(self.without_system)}{{{{ end }}}}")
        else:
            parts.append(_go(self.without_system))
        parts.append("{{ range .Messages }}")
        for number, (role, (before, after)) in enumerate(self.around.items()):
            test = "if" if number == 0 else "else if"
            parts.append(f'{{{{ {test} eq .Role "{role}" }}}}{_go(before)}{{{{ .Content }}}}{_go(after)}')
        return "".join([*parts, "{{ end }}{{ end }}", _go(self.answer)])


def turns_of(tokenizer: PreTrainedTokenizerBase, *, adds_bos: bool) -> Turns:
    """What training's chat template puts around turns, proved on conversations.

    Args:
        tokenizer: with a chat template.
        adds_bos: whether a first token is put before every text; Ollama does that to a rendered one too.

    Raises:
        NotExpressible: fixed text can't say what the template does.
    """

    def render(messages: Messages, answer: bool) -> str:
        conversation: Any = messages
        text = tokenizer.apply_chat_template(conversation, add_generation_prompt=answer, tokenize=False)
        assert isinstance(text, str)
        if not adds_bos:
            return text
        begin = str(tokenizer.bos_token)
        if not text.startswith(begin):
            raise NotExpressible(f"begins no conversation with {begin}, which Ollama puts before every text")
        return text.removeprefix(begin)

    found = _derive(render)
    strips = False
    for messages in _conversations(with_system="system" in found.around):
        try:
            expected = render(messages, True)
        except NotExpressible:
            raise
        except Exception as error:
            raise NotExpressible(f"refuses a conversation of {len(messages)} turns ({error})") from error
        if found.render(messages) == expected:
            continue
        stripped = [{**message, "content": message["content"].strip()} for message in messages]
        if found.render(stripped) != expected:
            raise NotExpressible("does more than put fixed text around each turn")
        strips = True
    return Turns(without_system=found.without_system, around=found.around, answer=found.answer, strips=strips)


def _derive(render: Callable[[Messages, bool], str]) -> Turns:
    """The text around marks: each turn's end is what follows it as the last one, its beginning is the rest."""
    try:
        plain = _parts(render, 1, len(_MARKS))
        end_of_user = _parts(render, 1, 2)[-1]
        end_of_assistant = _parts(render, 1, 3)[-1]
    except NotExpressible:
        raise
    except Exception as error:
        raise NotExpressible(f"refuses a plain conversation ({error})") from error
    before_user = _cut(plain[2], end_of_assistant, at_end=False)
    around = {
        "user": (before_user, end_of_user),
        "assistant": (_cut(plain[1], end_of_user, at_end=False), end_of_assistant),
    }
    question = _messages(1, 2)
    answer = _cut(render(question, True), render(question, False), at_end=False)
    without_system = _cut(plain[0], before_user, at_end=True)
    try:
        begin, between, *_ = _parts(render, 0, len(_MARKS))
    except NotExpressible:
        raise
    except Exception:  # no system turn is known, as in Gemma
        return Turns(without_system=without_system, around=around, answer=answer)
    system = (begin, _cut(between, before_user, at_end=True))
    return Turns(without_system=without_system, around={"system": system, **around}, answer=answer)


def _messages(first: int, end: int) -> Messages:
    return [{"role": role, "content": mark} for role, mark in zip(_ROLES[first:end], _MARKS[first:end], strict=True)]


def _parts(render: Callable[[Messages, bool], str], first: int, end: int) -> list[str]:
    """The text before, between and after the marks of some turns."""
    text = render(_messages(first, end), False)
    parts = []
    for mark in _MARKS[first:end]:
        if text.count(mark) != 1:
            raise NotExpressible("moves, changes, repeats or leaves out what a turn says")
        before, _, text = text.partition(mark)
        parts.append(before)
    return [*parts, text]


def _cut(text: str, part: str, *, at_end: bool) -> str:
    """The text without a part of it at one end."""
    if not (text.endswith(part) if at_end else text.startswith(part)):
        raise NotExpressible("puts other text around a turn depending on where it stands")
    if at_end:
        return text.removesuffix(part)
    return text.removeprefix(part)


def _conversations(*, with_system: bool) -> list[Messages]:
    contents = [
        "Hi.",
        "Two\nlines {{ .Content }} \"quoted\" and 'so'",
        "  spaces around\n",
        "日本語 <b>",
        "ok",
        "5 % off?",
    ]
    conversations = []
    for length in (1, 3, 5):
        for shift in range(len(contents)):
            chosen = [contents[(shift + number) % len(contents)] for number in range(length)]
            turns = [
                {"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(chosen)
            ]
            conversations.append(turns)
            if with_system:
                conversations.append([{"role": "system", "content": contents[shift]}, *turns])
    return conversations


def _go(text: str) -> str:
    """Text as an action with a Go string, so that no space or brace of it is taken for the template's own."""
    if not text:
        return ""
    escaped = {"\\": "\\\\", "\n": "\\n", '"': "\\x22", "\r": "\\r", "\t": "\\t"}
    return '{{ "' + "".join(escaped.get(letter, letter) for letter in text) + '" }}'


def stop_texts(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> list[str]:
    """The tokens that end an answer, as text."""
    return [str(tokenizer.convert_ids_to_tokens(int(token))) for token in ends]
