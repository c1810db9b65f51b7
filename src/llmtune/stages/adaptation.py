"""How a run's tokenizer differs from its model's: what its config says, as the run began."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmtune.config.run import RunConfig
from llmtune.errors import ConfigError, RunError
from llmtune.models.adapter_files import is_adapter, read_adapter
from llmtune.models.source import ModelSource
from llmtune.models.tokenizer import Adaptation, ChatTemplate, has_tokenizer, load_tokenizer, read_template
from llmtune.models.vocabulary import Vocabulary


def find_adaptation(config: RunConfig, begun: Mapping[str, Any], *, is_trained: bool) -> Adaptation:
    """What the tokenizer gets, the chat template as the run keeps it.

    Args:
        config: the run's.
        begun: what the run recorded of its model when it began; empty where it begins now.
        is_trained: whether the weights are finished, and the template's file may have changed since.

    Raises:
        ConfigError: the template can't be read, or tokens are added to weights that don't train.
        RunError: the template's file has changed since the run began.
    """
    data, folder = config.data, None
    if config.is_trained_elsewhere and config.source_run is None:
        if data.add_tokens:
            raise ConfigError("data.add_tokens: nothing trains here, so new tokens would stay unknown; leave it out.")
        folder = Path(config.source_weights) if config.source_weights is not None else None
    if folder is not None and not (is_adapter(folder) and has_tokenizer(folder)):
        folder = None
    template = _template(data.chat_template, begun.get("chat_template"), is_trained=is_trained)
    return Adaptation(template, data.add_tokens, data.end_token, folder)


def describe_adaptation(adaptation: Adaptation, vocabulary: Vocabulary, end_token: str) -> dict[str, Any]:
    """The tokenizer's part of a run's record, from which it is made again."""
    template = adaptation.chat_template
    return {
        "added_tokens": {token.text: token.id for token in vocabulary.new_tokens},
        "end_token": end_token,
        "chat_template": None if template is None else {"path": template.path, "text": template.text},
    }


def check_same_tokens(begun: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Check that the tokens added are those that the weights were trained with.

    Args:
        begun: what the run recorded of its model when it began; empty where it begins now.
        vocabulary: what it adds now.

    Raises:
        RunError: they are others.
    """
    trained, now = begun.get("added_tokens", {}), {token.text: token.id for token in vocabulary.new_tokens}
    if begun and trained != now:
        raise RunError(
            f"data.add_tokens={_listed(now)}: the run's weights have rows for {_listed(trained)}; leave it as it was, "
            "or start a new run"
        )


def check_tokens_of_adapter(adapter: Path, source: ModelSource) -> None:
    """Check that an adapter to train on from has rows for the tokens that the run adds, and for no others.

    Raises:
        RunError: it hasn't.
    """
    asked, trained = f"method.adapter={adapter}", read_adapter(adapter, str(adapter)).trained_tokens
    now = source.vocabulary
    if list(trained) != now.new_ids:
        cure = f"set data.add_tokens={_listed(_names(adapter, source, trained))}" if trained else "leave it out"
        raise RunError(
            f"{asked}: trained rows for {len(trained)} added tokens, and data.add_tokens adds {len(now.new_ids)} to "
            f"{source.name}; {cure}, or start without an adapter"
        )
    names = _names(adapter, source, trained)
    if trained and names != [token.text for token in now.new_tokens]:
        raise RunError(f"{asked}: its added tokens are {_listed(names)}; set data.add_tokens to them, in that order")


def _names(adapter: Path, source: ModelSource, ids: tuple[int, ...]) -> list[str]:
    """The texts of tokens, as the tokenizer beside the adapter has them; those of the run where there is none."""
    if not has_tokenizer(adapter):
        return [token.text for token in source.vocabulary.new_tokens]
    beside = load_tokenizer(source, Adaptation(folder=adapter))
    return [str(beside.convert_ids_to_tokens(index)) for index in ids]


def _listed(texts: Any) -> str:
    return f"[{','.join(texts)}]"


def _template(path: str | None, kept: Mapping[str, str] | None, *, is_trained: bool) -> ChatTemplate | None:
    if path is None or kept is None or kept["path"] != path:
        return None if path is None else read_template(path)
    if not is_trained and Path(path).is_file() and read_template(path).text != kept["text"]:
        raise RunError(
            f"data.chat_template={path}: has changed since the run began; restore it, remove it (the run keeps the "
            "template that it began with), or start a new run"
        )
    return ChatTemplate(path, kept["text"])
