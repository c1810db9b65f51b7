"""Text to token ids and back, as the model was trained; needs `tokenizers`, and `jinja2` for conversations."""

import json
import re
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


class Text:
    """The tokenizer, chat template and end tokens in a model's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        settings = self._read("generation_config.json")
        ends = settings.get("eos_token_id")
        self.end_token_ids: list[int] = ends if isinstance(ends, list) else [] if ends is None else [ends]
        config = self._read("config.json")
        self.max_positions: int | None = config.get("max_position_embeddings") or config.get("n_positions")

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; `special` adds what the tokenizer puts around one, such as a first token."""
        return self._tokenizer.encode(text, add_special_tokens=special).ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def render(self, messages: list[dict[str, str]]) -> str:
        """A conversation as the model reads it, up to where its answer begins; encode it with `special=False`."""
        file = self._folder / "chat_template.jinja"
        if not file.exists():
            raise ValueError("this model has no chat template; give it plain text")
        special = {name: _content(self._settings.get(name)) for name in _SPECIAL if self._settings.get(name)}
        return render_template(file.read_text(encoding="utf-8"), messages, special)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self._folder / "tokenizer.json"))

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return self._read("tokenizer_config.json")

    def _read(self, name: str) -> dict[str, Any]:
        return json.loads((self._folder / name).read_text(encoding="utf-8"))


def render_template(template: str, messages: list[dict[str, str]], special: dict[str, str]) -> str:
    """A conversation through a chat template as transformers renders it, up to where the answer begins.

    Args:
        template: Jinja.
        messages: turns with `role` and `content`.
        special: special tokens by name, such as `bos_token`.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_refuse, strftime_now=lambda form: datetime.now().strftime(form))
    plain = re.sub(r"\b(end)?generation(?=\s*[-+]?%})", _plain_block, template)
    given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    return environment.from_string(plain).render(**given, **special)


def _refuse(message: str) -> None:
    raise ValueError(message)


def _plain_block(found: re.Match[str]) -> str:
    """Blocks that mark what was trained mean nothing here."""
    return "endif" if found.group(1) else "if true"


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _content(token: Any) -> str:
    return token["content"] if isinstance(token, dict) else str(token)
