"""Tokens as a person reads them: whole characters, with their spaces, and what is trained on told apart."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmtune.stages.token_pieces import Piece, pieces_of

pytestmark = pytest.mark.fast
TEXTS = (
    "plain words, then 🙂 and 👩‍👩‍👧 behind",
    "漢字とカタカナ、한국어",
    "naïve Å é ½ ﷽ мир مرحبا",
    "a \ufffd that stands there, and 🙂",
    "x <|im_end|>🙂<|im_end|> y",
)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama)


def pieces(tokenizer: Any, ids: list[int], trained: list[bool] | None = None) -> list[Piece]:
    return list(pieces_of(tokenizer, ids, trained or [False] * len(ids)))


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_is_shown_whole(tokenizer, text):
    ids = tokenizer(text).input_ids
    found = pieces(tokenizer, ids)
    assert "".join(piece.text for piece in found) == text
    assert sum(piece.num_tokens for piece in found) == len(ids)
    assert sum("\ufffd" in piece.text for piece in found) == text.count("\ufffd")


def test_only_the_tokens_of_one_character_are_taken_together(tokenizer):
    ids = tokenizer("ab🙂漢").input_ids
    assert len(ids) > 4
    found = pieces(tokenizer, ids)
    together = {piece.text: piece.num_tokens for piece in found if piece.num_tokens > 1}
    assert set(together) == {"🙂", "漢"} and sum(together.values()) + len(found) - 2 == len(ids)


def test_what_is_trained_on_is_never_taken_together_with_what_is_not(tokenizer):
    ids = tokenizer("🙂🙂").input_ids
    size = len(ids) // 2
    assert size > 1 and ids[:size] == ids[size:]
    found = pieces(tokenizer, ids, [number > 0 for number in range(len(ids))])
    assert [piece.is_trained for piece in found] == [False] + [True] * (len(found) - 1)
    assert "\ufffd" in found[0].text and found[-1] == Piece("🙂", True, size)
    assert sum(piece.num_tokens for piece in found if piece.is_trained) == len(ids) - 1
    assert pieces(tokenizer, ids, [number >= size for number in range(len(ids))]) == [
        Piece("🙂", False, size),
        Piece("🙂", True, size),
    ]


def test_a_special_token_stands_alone(tokenizer):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    half = tokenizer("🙂").input_ids[:1]
    found = pieces(tokenizer, [*half, end, *half, end])
    assert [piece.num_tokens for piece in found] == [1] * 4
    assert found[1].text == found[3].text == "<|im_end|>"


def test_spaces_that_stand_in_the_token_are_shown():
    """As SentencePiece has them; a decoder drops the one that begins a text."""
    words = ["<unk>", "▁the", "▁cat", "s", "▁sat", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    replaced = decoders.Replace("▁", " ")
    backend.decoder = decoders.Sequence(
        [replaced, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    found = [piece.text for piece in pieces(tokenizer, [1, 2, 3, 4, 5, 6, 7, 8, 2])]
    assert found == ["the", " cat", "s", " sat", "🙂", " cat"]
