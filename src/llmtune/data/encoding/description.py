"""What another process needs to know of a tokenizer, so that it can do without torch and transformers' models."""

from dataclasses import dataclass
from typing import Any

from llmtune.errors import DataError

_PREFIX_SPACES = ("\N{LOWER ONE EIGHTH BLOCK}", "Ġ")


@dataclass(frozen=True)
class TokenizerDescription:
    """A tokenizer as plain values; picklable where it isn't `in_process_only`."""

    backend: str | None
    """The fast tokenizer as JSON of the `tokenizers` library; None where there is none."""
    end_id: int
    """Token that ends an example."""
    end_token: str
    special_tokens: dict[int, str]
    """Id and spelling of every token that isn't text."""
    start_ids: tuple[int, ...]
    """What the tokenizer puts before a text by itself."""
    lead_ins: tuple[str, ...]
    """Texts to put before a later segment, and to cut off again, where the tokenizer puts a space before any text;
    which of them can be cut off depends on the segment."""
    chat_template: str | None
    """Jinja source of the chat template; None where there is none."""
    tool_template: str | None
    """Template of conversations with tools, where it is another one."""
    template_tokens: dict[str, str]
    """Special tokens by the names that templates use, such as `bos_token`."""
    splits_special: bool = False
    """Whether special tokens that stand in a text are taken apart as text."""
    may_be_fast: bool = True
    """Whether another engine than the library may encode, where it gives the same ids."""
    tokenizer: Any = None
    """The tokenizer itself where it has no backend."""

    @property
    def in_process_only(self) -> bool:
        """Whether the tokenizer can't be made anew in another process."""
        return self.backend is None


def describe_tokenizer(tokenizer: Any) -> TokenizerDescription:
    """What `ExampleTokenizer` needs of a tokenizer.

    Args:
        tokenizer: a transformers tokenizer.

    Raises:
        DataError: there is no end token, or the chat template isn't Jinja.
    """
    end_id = _end_id(tokenizer)
    own, for_tools = _templates(tokenizer)
    for source in filter(None, (own, for_tools)):
        _check_template(source)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    spelled = tokenizer.convert_ids_to_tokens(end_id)
    return TokenizerDescription(
        backend=None if backend is None else backend.to_str(),
        end_id=end_id,
        end_token=spelled,
        special_tokens=_special_tokens(tokenizer) | {end_id: spelled},
        start_ids=tuple(_start_ids(tokenizer)),
        lead_ins=("\n", spelled) if _adds_space(tokenizer) else (),
        chat_template=own,
        tool_template=for_tools,
        template_tokens={name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        splits_special=bool(getattr(tokenizer, "split_special_tokens", False)),
        tokenizer=tokenizer if backend is None else None,
    )


def _end_id(tokenizer: Any) -> int:
    if tokenizer.eos_token_id is None:
        raise DataError(
            "the model's tokenizer has no end token (eos_token), so examples can't be ended; name one with "
            "data.end_token"
        )
    return int(tokenizer.eos_token_id)


def _templates(tokenizer: Any) -> tuple[str | None, str | None]:
    """The tokenizer's template, and the one for conversations with tools if that is another."""
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        default, for_tools = found.get("default"), found.get("tool_use")
        return default or for_tools, for_tools if default else None
    return found or None, None


def _check_template(source: str) -> None:
    from jinja2 import TemplateSyntaxError

    from llmtune.data.encoding.chat_template import compile_template

    try:
        compile_template(source)
    except TemplateSyntaxError as error:
        raise DataError(f"the chat template can't be read, see its line {error.lineno}: {error.message}") from error


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marked = {int(number): str(token) for number, token in added.items() if token.special}
    named = [int(number) for number in tokenizer.all_special_ids]
    return marked | dict(zip(named, tokenizer.convert_ids_to_tokens(named), strict=True))


def _start_ids(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts before a text by itself, such as a start token; often none."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for number in range(len(full) - len(bare) + 1):
        if full[number : number + len(bare)] == bare:
            return full[:number]
    return []


def _adds_space(tokenizer: Any) -> bool:
    first = tokenizer("a", add_special_tokens=False)["input_ids"]
    return bool(first) and tokenizer.convert_ids_to_tokens(first)[0].startswith(_PREFIX_SPACES)
