"""The tokenizer that comes with a model, and a digest of all that decides which ids a text becomes."""

import hashlib
import json
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from llmtune.errors import ModelError
from llmtune.models.source import ModelSource

_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """The model's tokenizer; one without a pad token pads with its end token (padding is masked by position).

    Raises:
        ModelError: the files hold no tokenizer, or it has no end-of-text token.
    """
    if not any((source.folder / name).exists() for name in _VOCABULARY_FILES):
        # transformers would make up an empty one out of the model's type
        raise ModelError(f"{source.name} in {source.folder} has no tokenizer files (such as tokenizer.json); add them")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=source.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"the tokenizer of {source.name} in {source.folder} can't be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {source.name} has no eos_token; set one in its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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
