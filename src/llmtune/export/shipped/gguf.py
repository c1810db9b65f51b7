"""The model in this folder in llama.cpp: `pip install llama-cpp-python`."""

import ctypes
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp  # pyright: ignore[reportMissingImports]
import numpy as np
from llama_cpp.llama_chat_format import Jinja2ChatFormatter  # pyright: ignore[reportMissingImports]

_TOKENS_AT_ONCE = 512
_LEAST_ROOM = 1024
_END_KEYS = ("eos", "eot", "eom")


class LlamaText:
    """Text to token ids and back by llama.cpp's own tokenizer; all of it stands in the file.

    Args:
        model: of llama.cpp.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        keys = (f"tokenizer.ggml.{name}_token_id" for name in _END_KEYS)
        self.end_token_ids: list[int] = [int(value) for key in keys if (value := self._said(key)) is not None]
        self.max_positions: int | None = llama_cpp.llama_model_n_ctx_train(model)
        self._drops_space = self._said("tokenizer.ggml.add_space_prefix") == "true"

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; `special` adds what the tokenizer puts around one."""
        content = text.encode("utf-8")
        room = len(content) + 2
        ids = (llama_cpp.llama_token * room)()
        number = llama_cpp.llama_tokenize(self._vocab, content, len(content), ids, room, special, True)
        if number < 0:
            raise ValueError(f"llama.cpp can't encode {text[:40]!r}")
        return list(ids[:number])

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens left out."""
        text = b"".join(self._piece(token) for token in ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._drops_space else text

    def render(self, messages: list[dict[str, str]]) -> str:
        """A conversation as the model reads it, up to where its answer begins; encode it with `special=False`."""
        template = self._said("tokenizer.chat_template")
        if template is None:
            raise ValueError("this model has no chat template; give it plain text")
        begin, end = (self._special(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
        formatter = Jinja2ChatFormatter(template, eos_token=end, bos_token=begin)
        conversation: Any = messages
        return formatter(messages=conversation).prompt

    def _piece(self, token: int) -> bytes:
        room = 256
        piece = ctypes.create_string_buffer(room)
        size = llama_cpp.llama_token_to_piece(self._vocab, token, piece, room, 0, False)
        if size < 0:
            room = -size
            piece = ctypes.create_string_buffer(room)
            size = llama_cpp.llama_token_to_piece(self._vocab, token, piece, room, 0, False)
        return piece.raw[:size]

    def _special(self, key: str) -> str:
        token = self._said(key)
        return "" if token is None else llama_cpp.llama_vocab_get_text(self._vocab, int(token)).decode("utf-8")

    def _said(self, key: str) -> str | None:
        """What the file says under a key."""
        value = ctypes.create_string_buffer(1)
        size = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), value, 1)
        if size < 0:
            return None
        value = ctypes.create_string_buffer(size + 1)
        llama_cpp.llama_model_meta_val_str(self._model, key.encode(), value, size + 1)
        return value.value.decode("utf-8")


class Runtime:
    """The model in a folder, each row of a batch a sequence of its own, so that no padding is computed.

    Args:
        folder: folder with one .gguf file.
        exact: keep keys and values in 32 bits, twice llama.cpp's own 16.
    """

    def __init__(self, folder: Path, *, exact: bool = False) -> None:
        logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
        (file,) = sorted(folder.glob("*.gguf"))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(file).encode("utf-8"), llama_cpp.llama_model_default_params()
        )
        if not self._model:
            raise ValueError(f"llama.cpp can't load {file}")
        self.text = LlamaText(self._model)
        self._exact = exact
        self._num_tokens = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._context: Any = None
        self._size = (0, 0)
        self._rows: list[list[int]] = []

    def start(self, input_ids: Sequence[Sequence[int]], attention_mask: Sequence[Sequence[int]]) -> np.ndarray:
        """Begin new texts, rows padded on the left: logits [B, T, V]."""
        self._rows = [
            [int(token) for token, seen in zip(ids, mask, strict=True) if seen]
            for ids, mask in zip(input_ids, attention_mask, strict=True)
        ]
        width = len(input_ids[0])
        self._make_room(width + 1)
        logits = np.zeros((len(self._rows), width, self._num_tokens), dtype=np.float32)
        for number, row in enumerate(self._rows):
            for first in range(0, len(row), _TOKENS_AT_ONCE):
                part = row[first : first + _TOKENS_AT_ONCE]
                place = width - len(row) + first
                logits[number, place : place + len(part)] = self._run([(number, first, part)])
        return logits

    def step(self, tokens: Sequence[int]) -> np.ndarray:
        """One token further in each row: logits [B, V]."""
        longest = max(map(len, self._rows)) + 1
        if longest > self._size[1]:
            self._make_room(2 * longest)
            self._read_again()
        parts = []
        for number, (row, token) in enumerate(zip(self._rows, tokens, strict=True)):
            parts.append((number, len(row), [int(token)]))
            row.append(int(token))
        return self._run(parts)

    def _read_again(self) -> None:
        """Compute the keys and values of all rows anew."""
        for number, row in enumerate(self._rows):
            for first in range(0, len(row), _TOKENS_AT_ONCE):
                self._run([(number, first, row[first : first + _TOKENS_AT_ONCE])])

    def _make_room(self, length: int) -> None:
        """An empty context for as many rows of as many tokens."""
        if self._context is not None and self._size[0] == len(self._rows) and length <= self._size[1]:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
            return
        if self._context is not None:
            llama_cpp.llama_free(self._context)
        room = max(_LEAST_ROOM, -(-length // 256) * 256)
        threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = room * len(self._rows)
        settings.n_seq_max = len(self._rows)
        settings.n_batch = settings.n_ubatch = max(_TOKENS_AT_ONCE, len(self._rows))
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = False
        if self._exact:
            settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
            settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, settings)
        if not self._context:
            raise MemoryError(f"llama.cpp has no room for {len(self._rows)} texts of {room} tokens")
        self._size = (len(self._rows), room)

    def _run(self, parts: list[tuple[int, int, list[int]]]) -> np.ndarray:
        """Compute tokens of some rows: logits [tokens, V].

        Args:
            parts: row, position of its first token, tokens.
        """
        flat = [(number, first + place, token) for number, first, tokens in parts for place, token in enumerate(tokens)]
        batch = llama_cpp.llama_batch_init(len(flat), 0, 1)
        try:
            batch.n_tokens = len(flat)
            for place, (number, position, token) in enumerate(flat):
                batch.token[place] = token
                batch.pos[place] = position
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = number
                batch.logits[place] = True
            if code := llama_cpp.llama_decode(self._context, batch):
                raise RuntimeError(f"llama.cpp stopped with code {code}")
        finally:
            llama_cpp.llama_batch_free(batch)
        rows = [llama_cpp.llama_get_logits_ith(self._context, place) for place in range(len(flat))]
        return np.stack([np.ctypeslib.as_array(row, shape=(self._num_tokens,)) for row in rows])
