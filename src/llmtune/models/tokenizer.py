"""The tokenizer that a run works with, and a digest of all that decides which ids a text becomes."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jinja2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llmtune.errors import ConfigError, ModelError
from llmtune.logs import say
from llmtune.models.source import ModelSource
from llmtune.models.vocabulary import NewToken, Vocabulary

_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template that takes the place of the tokenizer's own."""

    path: str
    """File that it was read from, for messages."""
    text: str


@dataclass(frozen=True)
class Adaptation:
    """How a run's tokenizer differs from its model's."""

    chat_template: ChatTemplate | None = None
    """None leaves the model's own."""
    add_tokens: tuple[str, ...] = ()
    """Special tokens that are added where the model lacks them."""
    end_token: str | None = None
    """Token that ends an answer; None leaves the model's own."""
    folder: Path | None = None
    """Adapter's folder whose tokenizer takes the place of the model's, its new tokens among it; None has none."""

    @property
    def is_empty(self) -> bool:
        """Whether the tokenizer is the model's as it is."""
        return self == Adaptation()


def load_tokenizer(source: ModelSource, adaptation: Adaptation | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that a run works with; see `load_vocabulary`."""
    return load_vocabulary(source, adaptation or Adaptation())[0]


def load_vocabulary(source: ModelSource, adaptation: Adaptation) -> tuple[PreTrainedTokenizerBase, Vocabulary]:
    """The tokenizer that a run works with, and what the model needs for it.

    One without a pad token pads with its end token (padding is masked by position). Tokens that are added get the ids
    after the tokenizer's own.

    Raises:
        ConfigError: the template doesn't compile, or a token can't be added or end an answer.
        ModelError: the files hold no tokenizer, or it has no end-of-text token.
    """
    tokenizer = _read(source, adaptation.folder or source.folder)
    if adaptation.is_empty:
        return _padded(tokenizer), Vocabulary()
    own = tokenizer if adaptation.folder is None else _read(source, source.folder)
    known, own_end = set(own.get_vocab().values()), own.eos_token_id
    if adaptation.chat_template is not None:
        _set_template(tokenizer, adaptation.chat_template)
    _add_tokens(tokenizer, adaptation.add_tokens)
    if adaptation.end_token is not None:
        _set_end(tokenizer, adaptation.end_token)
    new = [NewToken(text, index) for text, index in tokenizer.get_vocab().items() if index not in known]
    end = None if tokenizer.eos_token_id == own_end else cast(int, tokenizer.eos_token_id)
    return _padded(tokenizer), Vocabulary(tuple(sorted(new, key=lambda token: token.id)), end)


def _padded(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds the files of a tokenizer."""
    return any((folder / name).exists() for name in _VOCABULARY_FILES)


def read_template(path: str) -> ChatTemplate:
    """The chat template in a file.

    Raises:
        ConfigError: there is no such file, or it holds no text.
    """
    asked = f"data.chat_template={path}"
    file = Path(path).expanduser()
    if file.is_dir():
        raise ConfigError(f"{asked}: is a folder; name a file that holds a chat template (Jinja).")
    if not file.is_file():
        raise ConfigError(f"{asked}: there is no such file; name one that holds a chat template (Jinja).")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "isn't UTF-8" if isinstance(error, UnicodeDecodeError) else f"can't be read ({error.strerror})"
        raise ConfigError(f"{asked}: {reason}; name a file that holds a chat template (Jinja).") from error
    if not text.strip():
        raise ConfigError(f"{asked}: is empty; name a file that holds a chat template (Jinja).")
    return ChatTemplate(path, text)


def _read(source: ModelSource, folder: Path) -> PreTrainedTokenizerBase:
    if not has_tokenizer(folder):
        # transformers would make up an empty one out of the model's type
        raise ModelError(f"{source.name} in {folder} has no tokenizer files (such as tokenizer.json); add them")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=source.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"the tokenizer of {source.name} in {folder} can't be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {source.name} has no eos_token; set one in its tokenizer_config.json")
    return tokenizer


def _set_template(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    """Take a template, which has to compile; which conversations it takes shows with the data."""
    tokenizer.chat_template = template.text
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"data.chat_template: {template.path}:{error.lineno}: {error.message}; mend the template."
        ) from None
    except Exception as error:  # a template may refuse this conversation, in any way
        logging.getLogger(__name__).debug("the chat template refuses a lone user turn: %s", error)


def _add_tokens(tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...]) -> None:
    """Add the special tokens that a tokenizer lacks, and say which it has."""
    known = tokenizer.get_vocab()
    atomic = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    problems = [
        f"data.add_tokens: {text} is an ordinary piece of the model's vocabulary already; choose a text that no "
        "example holds, such as <|name|>."
        for text in texts
        if text in known and text not in atomic
    ]
    if problems:
        raise ConfigError(problems)
    present = [text for text in texts if text in known]
    if present:
        say(
            f"data.add_tokens: the model has {', '.join(present)} already: not added, and trained only where its other "
            "tokens are (method=full)"
        )
    missing = [text for text in texts if text not in known]
    tokenizer.add_tokens(missing, special_tokens=True)
    taken = [text for text in missing if tokenizer.convert_tokens_to_ids(text) in known.values()]
    if taken:
        raise ConfigError(
            f"data.add_tokens: {taken[0]} would get the id of another token, as the model's vocabulary has gaps; its "
            "tokenizer can't take new tokens."
        )


def _set_end(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Make a token the one that ends an answer.

    Raises:
        ConfigError: the tokenizer doesn't have it as a token of its own.
    """
    atomic = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    if text not in atomic:
        known = ", ".join(atomic[:8]) + (", …" if len(atomic) > 8 else "")
        raise ConfigError(
            f"data.end_token={text}: is no special token of the model's tokenizer, which has {known or 'none'}; take "
            f"one of those, or add it with data.add_tokens=[{text}]."
        )
    tokenizer.eos_token = text


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hex SHA-256 over vocabulary, merges, normalisation, special tokens and chat template."""
    content = {
        "rules": _rules(tokenizer),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "added_tokens": {str(index): str(token) for index, token in tokenizer.added_tokens_decoder.items()},
        "chat_template": tokenizer.chat_template,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _rules(tokenizer: PreTrainedTokenizerBase) -> Any:
    """All of a fast tokenizer but the padding and truncation that its last call set; a slow one's vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab()
    rules = json.loads(backend.to_str())
    return {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
