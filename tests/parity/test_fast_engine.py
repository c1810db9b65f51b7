"""The fast engine gives the library's ids, whatever the tokenizer and the text."""

import argparse
import itertools
import json
import os
import random
from functools import cache, lru_cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from llmtune.data.encoding.fast_engine import FastEncoder, choose_encoder
from llmtune.data.encoding.library_engine import LibraryEncoder

pytest.importorskip("fastokens")

NUM_FUZZED = int(os.environ.get("LLMTUNE_FUZZ_EXAMPLES", "300"))
GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = GPT4.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
LOWER, UPPER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SHORT}|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SHORT}"
    rf"|\p{{N}}{{1,3}}|{TAIL}"
)
TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}|{TAIL}"
DEEPSEEK = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
ADDED = [
    AddedToken("<|im_start|>", special=True, normalized=False),
    AddedToken("<|im_end|>", special=True, normalized=False),
    AddedToken("<think>", special=False, normalized=False),
    AddedToken("<tool_call>", special=False, normalized=True),
    AddedToken("<strip>", lstrip=True, rstrip=True, special=False, normalized=False),
    AddedToken("wordy", single_word=True, special=False, normalized=False),
]
BLOCKS = ((0xC0, 0x180), (0x370, 0x460), (0x5D0, 0x64B), (0x900, 0x970), (0xE01, 0xE5B), (0x3041, 0x3100))
PIECES = (
    *"aZ1'\".,_-/<|>$€ſİıßﬁéΩÅǅͺᾳＡ𝐀𐐀½²٣Ⅷ一の한😀🏽…।▁Ġ",
    *("e\u0301", "\u1100\u1161\u11a8", "\u0345", "\u0301\u0323", "ก็", "्", "👨\u200d👩\u200d👧", "🇫🇷"),
    *(" ", "  ", "\n", "\r\n", "\r", "\t", "\v", "\f", "\x00", "\x1c", "\x1f", "\x7f", "\x85", "\xa0", "\xad"),
    *"\u1680\u180e\u2000\u200b\u2028\u2029\u202f\u205f\u3000\ufeff\ufffd\ue000\U0010ffff\u0378\U00011f00",
    *(token.content for token in ADDED),
    *("<|im_start", "|>", "<s>", "</s>", "<unk>", "<0x0A>", "'s", "'LL", "'ſ", "the", " def", "return", "12345"),
    *("a" * 40, " " * 40, "\n" * 20, "=" * 30, "A" * 30, "7" * 20),
)


def splits(*patterns):
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_level(prefix=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix)


BYTE_LEVEL = {
    "gpt2": (None, byte_level(), False),
    "gpt_neox": (normalizers.NFC(), byte_level(), False),
    "roberta": (None, byte_level(prefix=True), False),
    "smollm": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level()]), False),
    "llama3": (None, splits(GPT4), True),
    "qwen2": (normalizers.NFC(), splits(QWEN2), False),
    "qwen35": (normalizers.NFC(), splits(QWEN35), False),
    "o200k": (None, splits(O200K), True),
    "tekken": (None, splits(TEKKEN), True),
    "deepseek": (None, splits(*DEEPSEEK), False),
    "bloom": (None, splits(BLOOM), False),
}
SPACED = {
    "llama2": (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None),
    "gemma": (normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous")),
}
KINDS = [*BYTE_LEVEL, *SPACED]


@cache
def corpus() -> list[str]:
    """Code and words of many scripts, to train small tokenizers on."""
    numbers = random.Random(0)
    words = ["".join(chr(numbers.randint(*block)) for _ in range(numbers.randint(1, 4))) for block in BLOCKS * 500]
    numbers.shuffle(words)
    code = [Path(module.__file__ or "").read_text(encoding="utf-8") for module in (argparse, json, random)]
    return [*code, *(" ".join(words[start : start + 20]) for start in range(0, len(words), 20))]


@cache
def tokenizer_json(kind: str) -> str:
    """A small tokenizer of the kind, as JSON."""
    return (byte_level_tokenizer if kind in BYTE_LEVEL else spaced_tokenizer)(kind).to_str()


def byte_level_tokenizer(kind: str) -> Tokenizer:
    normalizer, pre_tokenizer, ignores = BYTE_LEVEL[kind]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignores))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=1500, show_progress=False, initial_alphabet=alphabet)
    )
    tokenizer.add_tokens(ADDED)
    return tokenizer


def spaced_tokenizer(kind: str) -> Tokenizer:
    """One that writes spaces as ▁ and characters that it lacks as their bytes, as SentencePiece does."""
    normalizer, pre_tokenizer = SPACED[kind]
    learner = Tokenizer(models.BPE(unk_token="<unk>"))
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    basics = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    learner.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=1500, show_progress=False, special_tokens=basics, limit_alphabet=300)
    )
    learnt = json.loads(learner.to_str())
    learnt["model"] |= {"byte_fallback": True, "fuse_unk": True}
    learnt["added_tokens"] = learnt["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(learnt))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_tokens(ADDED)
    return tokenizer


@lru_cache(maxsize=4)  # an engine holds 45 MB
def engines(kind: str, splits_special: bool = False) -> tuple[FastEncoder, LibraryEncoder]:
    """Both engines of the kind."""
    chosen = choose_encoder(tokenizer_json(kind), splits_special=splits_special)
    assert isinstance(chosen, FastEncoder), f"{kind}: the library was chosen"
    return chosen, LibraryEncoder(tokenizer_json(kind), splits_special=splits_special)


def assert_same(kind: str, texts: list[str], splits_special: bool = False) -> None:
    fast, library = engines(kind, splits_special)
    for text, got, expected in zip(texts, fast.encode(texts), library.encode(texts), strict=True):
        assert got.tolist() == expected.tolist(), ascii(text[:200])


@pytest.mark.parametrize("kind", KINDS)
def test_nasty_texts(kind):
    numbers = random.Random(kind)
    texts = ["", *PIECES, *(a + b for a, b in itertools.product(PIECES, PIECES)), *corpus()]
    texts += ["".join(numbers.choices(PIECES, k=numbers.randint(3, 40))) for _ in range(1000)]
    texts += [unit * 20_000 for unit in (" ", "\n", "a", "aB", "1", "!", "é", "中", "\u0301", "'s", "\r\n ")]
    assert_same(kind, texts)


@pytest.mark.parametrize("kind", ["qwen2", "llama2", "o200k"])
def test_special_tokens_taken_as_text(kind):
    assert_same(kind, ["<|im_start|>user<|im_end|>", " <strip> <|im_end|>", "plain"], splits_special=True)
    fast, _ = engines(kind, True)
    assert fast.encode(["<|im_end|>"])[0].tolist() != engines(kind)[0].encode(["<|im_end|>"])[0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_long_texts_that_share_their_start(kind):
    numbers = random.Random(kind)
    for _ in range(8):
        start = "".join(numbers.choices(PIECES, k=3000))
        ends = ["".join(numbers.choices(PIECES, k=10)) for _ in range(4)]
        assert_same(kind, [start[: numbers.randint(3000, len(start))] + end for end in ends])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama3", "qwen35", "o200k", "deepseek", "smollm", "gemma"])
def test_every_character_in_turn(kind):
    characters = [chr(number) for number in range(0x32000) if not 0xD800 <= number < 0xE000]
    texts = ["".join(f"a{c}  {c}'{c}s1{c}" for c in characters[at : at + 40]) for at in range(0, len(characters), 280)]
    assert_same(kind, texts)


@pytest.mark.parametrize("kind", KINDS)
def test_fuzzed_texts(kind):
    text = st.one_of(
        st.text(max_size=200),
        st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=40).map("".join),
        st.text(st.sampled_from("aA1 .'\n\t,sSé中\u0301"), max_size=100),
    )

    @settings(
        max_examples=max(NUM_FUZZED // len(KINDS), 20),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(text, min_size=1, max_size=8))
    def check(texts: list[str]) -> None:
        assert_same(kind, texts)

    check()


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (r"\\p{N}{1,3}", r"\\p{N}{1,2}"),
        (r"\\s+(?!\\S)|\\s+", r"\\s+"),
        ("(?i:'s|", "(?:'s|"),
        ("<think>", "<thnk>"),
    ],
)
def test_a_fast_engine_that_is_subtly_wrong_is_not_chosen(right, wrong):
    assert not astray_encoder(right, wrong).agrees_on(["<think>", "<|im_end|>"])
    assert astray_encoder(right, right).agrees_on(["<think>", "<|im_end|>"])


def test_letters_that_a_fast_engine_takes_for_others_go_to_the_library():
    encoder = astray_encoder(r"]?\\p{L}+", r"]?[a-zA-Zа-яА-Я]+")
    _, library = engines("llama3")
    texts = ["naïve", " привет", " ελληνικά", "中文", " über"]
    assert [found.tolist() for found in encoder.encode(texts)] == [found.tolist() for found in library.encode(texts)]
    # the letters were all met above: this one now goes to the fast engine as it is, and is wrong
    assert encoder._fast_ids(texts[2:3])[0].tolist() != library.encode(texts[2:3])[0].tolist()


def astray_encoder(right: str, wrong: str) -> FastEncoder:
    """A fast engine whose tokenizer has `wrong` in place of `right`, beside the right library."""
    import fastokens

    text = tokenizer_json("llama3")
    assert right in text
    library = LibraryEncoder(text, splits_special=False)
    return FastEncoder(library, fastokens.Tokenizer.from_json_str(text.replace(right, wrong)))
