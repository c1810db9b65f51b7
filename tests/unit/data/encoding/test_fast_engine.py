import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from llmtune.data.encoding import fast_engine
from llmtune.data.encoding.fast_engine import CHECK_EVERY, EnginesDiffer, FastEncoder, choose_encoder
from llmtune.data.encoding.library_engine import LibraryEncoder

pytestmark = pytest.mark.fast


class StandIn:
    """Stands for fastokens: the library's ids, but for what `wrong` does to them."""

    def __init__(self, library, wrong=lambda text, ids: ids):
        self.library = library
        self.wrong = wrong
        self.texts = []

    def encode_batch_flat(self, texts, split_special_tokens=False):
        self.texts += texts
        ids = [self.wrong(text, found) for text, found in zip(texts, self.library.encode(texts), strict=True)]
        flat = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        return flat.astype(np.uint32).tobytes(), np.cumsum([0, *map(len, ids)]).astype(np.uint64).tobytes()


@pytest.fixture
def library(tiny_llama):
    return LibraryEncoder((tiny_llama / "tokenizer.json").read_text(), splits_special=False)


def doubled_where(character):
    return lambda text, ids: np.repeat(ids, 2) if character in text else ids


def make(library, wrong=lambda text, ids: ids):
    stand_in = StandIn(library, wrong)
    encoder = FastEncoder(library, stand_in)
    stand_in.texts = []
    return encoder, stand_in


def test_ids_are_the_librarys_in_order_and_come_from_the_fast_engine(library):
    encoder, fast = make(library)
    texts = ["one", "", "zwei", "one two three"]
    assert [found.tolist() for found in encoder.encode(texts)] == [found.tolist() for found in library.encode(texts)]
    assert fast.texts == texts
    assert all(found.dtype == np.int32 for found in encoder.encode(texts))
    assert encoder.decode(library.encode(["one two"])[0].tolist()) == library.decode(library.encode(["one two"])[0])
    assert encoder.encode([]) == []


@pytest.mark.parametrize("character", ["é", "中", "~", "\x04"])
def test_a_character_on_which_the_engines_differ_goes_to_the_library(library, character):
    encoder, fast = make(library, doubled_where(character))
    texts = [f"a{character}", "plain", f"{character}b", "more"]
    assert [found.tolist() for found in encoder.encode(texts)] == [found.tolist() for found in library.encode(texts)]
    assert "plain" in fast.texts
    assert "more" in fast.texts
    assert f"a{character}" not in fast.texts


@pytest.mark.parametrize("character", ["\N{LATIN SMALL LETTER LONG S}", "\N{MONGOLIAN VOWEL SEPARATOR}"])
def test_characters_that_are_known_to_differ_never_reach_the_fast_engine(library, character):
    encoder, fast = make(library)
    encoder.encode([f"a{character}"])
    assert fast.texts == []


def test_a_byte_without_an_id_goes_to_the_library(library):
    def refuse(text, ids):
        if "\x04" in text:
            raise ValueError("byte 0x04 has no token in vocabulary")
        return ids

    encoder, fast = make(library, refuse)
    texts = ["a\x04", "plain"]
    assert [found.tolist() for found in encoder.encode(texts)] == [found.tolist() for found in library.encode(texts)]
    assert fast.texts == ["plain"]


def test_a_refusal_that_no_character_foretold_goes_to_the_library(library):
    def refuse(text, ids):
        if text == "ab":
            raise ValueError
        return ids

    encoder, _ = make(library, refuse)
    assert [found.tolist() for found in encoder.encode(["ab", "c"])] == [
        found.tolist() for found in library.encode(["ab", "c"])
    ]


@pytest.mark.parametrize("sizes", [(1,) * 200, (7,) * 30, (200,), (63, 2, 135)])
def test_one_text_in_so_many_is_compared_whole_the_first_always(library, sizes):
    compared = []

    class Counting:
        def encode(self, texts):
            compared.extend(texts)
            return library.encode(texts)

    encoder = FastEncoder(Counting(), StandIn(library))
    compared.clear()
    texts = iter([f"text {number}" for number in range(sum(sizes))])
    for size in sizes:
        encoder.encode([next(texts) for _ in range(size)])
    assert compared == [f"text {number}" for number in range(0, sum(sizes), CHECK_EVERY)]


def test_other_ids_amid_the_data_end_the_work(library):
    encoder, _ = make(library, lambda text, ids: ids[::-1] if text == "wrong one" else ids)
    encoder.encode(["right"] * CHECK_EVERY)
    with pytest.raises(EnginesDiffer, match="LLMTUNE_FAST_TOKENIZER=0"):
        encoder.encode(["wrong one"])


@pytest.mark.parametrize(
    ("wrong", "agrees"),
    [
        (lambda text, ids: ids, True),
        (lambda text, ids: ids[:-1] if "q$" in text else ids, False),
        (lambda text, ids: ids[:-1] if "\r\n\r\n\r\n" in text else ids, False),
        (lambda text, ids: ids[:-1] if " <|x|>\n<|x|>" in text else ids, False),
    ],
)
def test_texts_that_tell_engines_apart(library, wrong, agrees):
    encoder, _ = make(library, wrong)
    assert encoder.agrees_on(["<|x|>"]) is agrees


@pytest.mark.parametrize("character", ["e", " ", "\n", "7"])
def test_a_common_character_on_which_the_engines_differ_rules_the_fast_one_out(library, character):
    encoder, _ = make(library, doubled_where(character))
    assert not encoder.agrees_on([])


def test_the_library_where_the_fast_engine_is_missing(tiny_llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastokens", None)
    chosen = choose_encoder((tiny_llama / "tokenizer.json").read_text(), splits_special=False)
    assert isinstance(chosen, LibraryEncoder)


class Made:
    """Stands for the module `fastokens`."""

    wrong = staticmethod(lambda text, ids: ids)

    class Tokenizer(StandIn):
        @classmethod
        def from_json_str(cls, text):
            return cls(LibraryEncoder(text, splits_special=False), Made.wrong)

        def no_truncation(self): ...

        def no_padding(self): ...


@pytest.fixture
def fast_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastokens", Made)
    monkeypatch.setattr(Made, "wrong", staticmethod(lambda text, ids: ids))


@pytest.mark.usefixtures("fast_module")
def test_the_fast_engine_where_it_agrees(tiny_llama, monkeypatch):
    text = (tiny_llama / "tokenizer.json").read_text()
    assert isinstance(choose_encoder(text, splits_special=False), FastEncoder)
    monkeypatch.setattr(Made, "wrong", staticmethod(lambda text, ids: ids[:-1] if text.startswith("def ") else ids))
    assert isinstance(choose_encoder(text, splits_special=False), LibraryEncoder)


@pytest.mark.usefixtures("fast_module")
def test_the_switch_turns_it_off(tiny_llama, monkeypatch):
    monkeypatch.setenv(fast_engine.SWITCH, "0")
    chosen = choose_encoder((tiny_llama / "tokenizer.json").read_text(), splits_special=False)
    assert isinstance(chosen, LibraryEncoder)


@pytest.mark.usefixtures("fast_module")
@pytest.mark.parametrize(
    "model",
    [models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"), models.BPE({"a": 0, "b": 1}, [], dropout=0.5)],
    ids=["WordPiece", "dropout"],
)
def test_the_library_for_other_models(model):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    assert isinstance(choose_encoder(tokenizer.to_str(), splits_special=False), LibraryEncoder)
