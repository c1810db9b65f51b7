"""Text to token ids by what a GGUF file says, following llama.cpp's rules in the tokenizers library."""

import json
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_CUTS = {
    "gpt-2": [_GPT2],
    "smollm": [r"\p{N}", _GPT2],
    "qwen2": [_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST],
    "llama-bpe": [_LLAMA3],
    "dbrx": [_LLAMA3],
}
"""The expressions of llama.cpp's `src/llama-vocab.cpp`, applied in turn."""
_WHOLE_WORDS = ("llama-bpe",)
"""Where a word that is a token isn't made of parts."""


class FileText:
    """The tokenizer and chat template in a file.

    Args:
        said: the file's metadata.
    """

    def __init__(self, said: dict[str, Any]) -> None:
        self._said = {key.removeprefix("tokenizer."): value for key, value in said.items()}
        self.end_token_ids: list[int] = [
            self._said[key] for name in ("eos", "eot", "eom") if (key := f"ggml.{name}_token_id") in self._said
        ]
        self.max_positions: int | None = said.get(f"{said['general.architecture']}.context_length")

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; `special` adds what the tokenizer puts around one."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if special and self._said["ggml.add_bos_token"]:
            ids = [self._said["ggml.bos_token_id"], *ids]
        if special and self._said["ggml.add_eos_token"]:
            ids = [*ids, self._said["ggml.eos_token_id"]]
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens left out."""
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text.removeprefix(" ") if self._said.get("ggml.add_space_prefix") else text

    def render(self, messages: list[dict[str, str]]) -> str:
        """A conversation as the model reads it, up to where its answer begins."""

        def refuse(message: str) -> None:
            raise ValueError(message)

        if "chat_template" not in self._said:
            raise ValueError("this model has no chat template; give it plain text")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        template = environment.from_string(self._said["chat_template"])
        begin, end = (self._token(name) for name in ("bos", "eos"))
        return template.render(
            messages=messages,
            add_generation_prompt=True,
            bos_token=begin,
            eos_token=end,
            tools=None,
            raise_exception=refuse,
        )

    def _token(self, name: str) -> str:
        number = self._said.get(f"ggml.{name}_token_id")
        return "" if number is None else self._said["ggml.tokens"][number]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokens, types = self._said["ggml.tokens"], self._said["ggml.token_type"]
        vocabulary = {token: number for number, token in enumerate(tokens)}
        tokenizer: Any = self._by_scores(vocabulary) if self._said["ggml.model"] == "llama" else self._by(vocabulary)
        for kind in (_CONTROL, _USER_DEFINED):
            added = [token for token, own in zip(tokens, types, strict=True) if own == kind]
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=kind == _CONTROL) for token in added])
        return tokenizer

    def _by(self, vocabulary: dict[str, int]) -> Tokenizer:
        """Bytes put together by merges, within words."""
        name = self._said["ggml.pre"]
        merges = [tuple(pair.split(" ", 1)) for pair in self._said["ggml.merges"]]
        tokenizer: Any = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=name in _WHOLE_WORDS))
        cuts = [pre_tokenizers.Split(Regex(cut), "isolated") for cut in _CUTS[name]]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(False, use_regex=False)])
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def _by_scores(self, vocabulary: dict[str, int]) -> Tokenizer:
        """Letters put together to tokens, that of the highest score first, and bytes where there is no token."""
        scores, types = self._said["ggml.scores"], self._said["ggml.token_type"]
        made = [token for token, number in vocabulary.items() if types[number] == _NORMAL]
        made.sort(key=lambda token: -scores[vocabulary[token]])
        pairs = [(token[:cut], token[cut:]) for token in made for cut in range(1, len(token))]
        merges = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
        tokenizer: Any = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True))
        prefix = [normalizers.Prepend(_SPACE)] if self._said["ggml.add_space_prefix"] else []
        tokenizer.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
        tokenizer.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
        return tokenizer


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
