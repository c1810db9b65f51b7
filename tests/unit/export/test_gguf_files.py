"""What stands in a GGUF file, by values worked out by hand; what llama.cpp would compute otherwise is refused."""

import json
import re

import gguf
import numpy as np
import pytest
import torch
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    Qwen2Config,
    SmolLM3Config,
)

from llmtune.errors import ExportCheckFailed
from llmtune.export.gguf_files import architecture, quantise, vocabulary
from llmtune.export.gguf_files.file_text import FileText
from llmtune.export.gguf_files.metadata import rope_factors
from llmtune.export.gguf_files.pretokenizers import pretokenizer_name
from llmtune.export.gguf_files.tensors import StoredTensor, paired_rows
from tiny_shapes import CAPPED, SHAPE
from tiny_tokenizers import LLAMA3, PREFIXED, QWEN2, REPLACED, SPACE, byte_level, expression, sentencepiece

F16, F32, Q8_0 = (gguf.GGMLQuantizationType[name] for name in ("F16", "F32", "Q8_0"))
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 400,
}


def test_rows_of_each_head_are_put_in_pairs():
    rows = torch.arange(12.0)[:, None]  # two heads of six rows: halves 0 1 2 | 3 4 5 and 6 7 8 | 9 10 11
    assert paired_rows(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_norms_of_gemma_are_stored_as_llama_cpp_multiplies_by_them():
    stored = StoredTensor(name="output_norm.weight", weight=torch.tensor([0.5, -0.25]), kind=F32, offset=1.0)
    assert stored.values().tolist() == [1.5, 0.75]


def test_sixteen_bits_hold_what_they_can_and_refuse_the_rest():
    weight = torch.tensor([[1.0, 2**-11 + 1.0, 65504.0]])
    stored = StoredTensor(name="w", weight=weight, kind=F16)
    assert stored.num_bytes == 6
    assert stored.values().tolist() == [[1.0, 1.0, 65504.0]]  # 1 + 2^-11 lies between 1 and 1 + 2^-10: even wins
    with pytest.raises(ExportCheckFailed, match=r"w has weights up to 7e\+04, and 16 bits hold 65504"):
        StoredTensor(name="w", weight=torch.tensor([[70000.0]]), kind=F16).values()


def test_eight_bits_hold_a_scale_for_each_32_numbers():
    numbers = torch.linspace(-127, 127, 32)[None] / 2
    stored = StoredTensor(name="w", weight=numbers, kind=Q8_0)
    block = stored.values().tobytes()
    assert stored.num_bytes == len(block) == 34
    assert np.frombuffer(block[:2], dtype=np.float16)[0] == 0.5  # the largest, 63.5, over 127
    assert np.frombuffer(block[2:], dtype=np.int8)[[0, 16, 31]].tolist() == [-127, 4, 127]


def test_projections_of_gpt2_are_turned_round():
    weight = torch.arange(6.0).reshape(2, 3)
    stored = StoredTensor(name="w", weight=weight, kind=F32, transposed=True)
    assert stored.shape == (3, 2)
    assert stored.values().tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_llama_3_divides_low_frequencies():
    config = LlamaConfig(**{**SHAPE, "head_dim": 6}, rope_parameters=LLAMA3_ROPE)
    # Wavelengths 2 pi, 2 pi * 21.5 and 2 pi * 464: 63.7 turns in 400 tokens, 2.955 and 0.137. The first is over 4
    # (kept), the last under 1 (divided by 8), that between 1 / ((1 - s) / 8 + s) with s = (2.955 - 1) / 3.
    assert rope_factors(config) == pytest.approx([1.0, 1.4382, 8.0], rel=1e-3)
    assert rope_factors(LlamaConfig(**SHAPE)) is None


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE),
        MistralConfig(**SHAPE, sliding_window=None),
        MistralConfig(**SHAPE, sliding_window=4096, max_position_embeddings=4096),
        Qwen2Config(**SHAPE),
        GemmaConfig(**SHAPE),
        Gemma2Config(**SHAPE, **CAPPED),
        Gemma3TextConfig(**SHAPE, query_pre_attn_scalar=8),
        SmolLM3Config(**SHAPE),
        GPT2Config(n_layer=2),
    ],
)
def test_what_llama_cpp_computes_is_taken(config):
    assert architecture.why_not(config) is None


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (PhiConfig(), "this model is phi"),
        (LlamaConfig(**SHAPE, hidden_act="gelu"), "computes llama with silu, and this model has gelu"),
        (LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}), "=dynamic"),
        (Qwen2Config(**SHAPE, rope_parameters=LLAMA3_ROPE), "doesn't compute rope_type=llama3 for qwen2"),
        (MistralConfig(**SHAPE, sliding_window=4), r"trained to see 4 tokens \(sliding_window\)"),
        (
            Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=4, max_window_layers=1),
            r"trained to see 4 tokens",
        ),
        (Gemma2Config(**SHAPE, **CAPPED, layer_types=["full_attention"] * 2), None),
        (
            Gemma2Config(**SHAPE, **CAPPED, layer_types=["full_attention", "sliding_attention"]),
            "lets one layer in 2 of gemma2 see the whole text",
        ),
        (Gemma2Config(**SHAPE, query_pre_attn_scalar=9), "divides attention scores by the root of 8"),
        (Gemma2Config(**SHAPE, **CAPPED, attn_logit_softcapping=None), "always caps attention scores"),
        (GemmaConfig(**SHAPE, tie_word_embeddings=False), "no place for an output head of its own in gemma"),
        (SmolLM3Config(**SHAPE, no_rope_layers=[1, 0]), "leaves one layer in 4 without rotary embeddings"),
        (GPT2Config(scale_attn_by_inverse_layer_idx=True), "doesn't compute scale_attn_by_inverse_layer_idx=True"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(config, reason):
    if reason is None:  # a pattern without any window is no pattern
        config.sliding_window = None
        assert architecture.why_not(config) is None
        return
    found = architecture.why_not(config)
    assert re.search(reason, str(found))


@pytest.mark.parametrize(
    ("tokenizer", "name"),
    [
        (byte_level(pre_tokenizers.ByteLevel(False)), "gpt-2"),
        (byte_level(pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)), "smollm"),
        (byte_level(*expression(QWEN2)), "qwen2"),
        (byte_level(*expression(LLAMA3), ignore_merges=True), "llama-bpe"),
        (byte_level(*expression(LLAMA3)), "dbrx"),
        (byte_level(*expression(QWEN2), ignore_merges=True), None),
        (byte_level(pre_tokenizers.ByteLevel(True)), None),
        (byte_level(pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(False)), None),
        (byte_level(*expression(QWEN2 + "|x")), None),
    ],
)
def test_a_way_to_cut_words_is_known_by_its_form_or_refused(tokenizer, name):
    assert pretokenizer_name(json.loads(tokenizer.backend_tokenizer.to_str())) == name
    refused = vocabulary.why_not(tokenizer, len(tokenizer), 1)
    assert (refused is None) == (name is not None)
    if name is None:
        assert "no name for this tokenizer's way to cut text into words" in str(refused)
        return
    text = "He's here,  12 345 HE'LL\n\n\tthe 日本語 é <s> end "
    assert as_file(tokenizer).encode(text) == tokenizer(text)["input_ids"]


def as_file(tokenizer, num_rows: int | None = None) -> FileText:
    """A tokenizer through the metadata of a GGUF file."""
    ends = [tokenizer.eos_token_id]
    writer = gguf.GGUFWriter(None, "llama")
    vocabulary.add_vocabulary(writer, vocabulary.read_vocabulary(tokenizer, num_rows or len(tokenizer), ends))
    return FileText({key: field.value for key, field in writer.kv_data[0].items()})


@pytest.mark.parametrize("normalizer", [PREFIXED, REPLACED])
def test_sentencepiece_vocabularies_keep_their_merges_as_scores(normalizer):
    tokenizer = sentencepiece(normalizer)
    assert vocabulary.why_not(tokenizer, len(tokenizer), 1) is None
    file = as_file(tokenizer)
    for text in ("the a", "the  thathe é\n", " a", "a</s>the", "日本"):
        assert file.encode(text) == tokenizer(text)["input_ids"], text
        assert file.decode(file.encode(text)) == tokenizer.decode(tokenizer(text)["input_ids"], True), text
    words = vocabulary.read_vocabulary(tokenizer, 280, [2])
    scores = dict(zip(words.tokens, words.scores, strict=True))
    assert [scores[token] for token in ("he", "th", "the", f"{SPACE}the", f"{SPACE}a")] == [0, -1, -2, -3, -4]
    assert (words.pre, words.merges, words.adds_bos, words.adds_eos) == (None, [], True, False)
    assert words.space_prefix is (normalizer is PREFIXED)
    assert [words.types[number] for number in (1, 3, 259, 279)] == [3, 6, 1, 5]  # control, byte, normal, unused


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (sentencepiece(REPLACED, merges=[("h", "e"), ("t", "he")]), "would make 'the' of 'th' and 'e'"),
        (
            sentencepiece(REPLACED, merges=[("t", "he"), ("h", "e"), ("th", "e"), ("t", "h")]),
            "in the order of their scores, and this tokenizer's merges have no such order",
        ),
        (sentencepiece(normalizers.NFKC()), "a space before a text and after each special token or nowhere"),
        (sentencepiece(REPLACED, byte_fallback=False), "as the normalizer Replace does"),
    ],
)
def test_sentencepiece_vocabularies_that_scores_cannot_say_are_refused(tokenizer, reason):
    assert reason in str(vocabulary.why_not(tokenizer, len(tokenizer), 1))


def test_a_vocabulary_says_what_each_row_is(tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.add_tokens(["<think>"])
    words = vocabulary.read_vocabulary(tokenizer, 388, [2, 0])
    assert len(words.tokens) == len(words.types) == 388
    assert words.tokens[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert words.tokens[384:] == ["<think>", "[PAD385]", "[PAD386]", "[PAD387]"]
    assert [words.types[number] for number in (0, 2, 100, 384, 385)] == [3, 3, 1, 4, 5]
    assert words.merges[:2] == ["h e", "Ġ t"]
    assert words.special == {"bos": 1, "unk": 0, "pad": 2}
    assert (words.ends, words.adds_bos, words.adds_eos) == ([2, 0], False, False)


def test_the_chat_template_in_the_file_has_no_blocks_that_only_training_knows():
    marked = "{%- generation %}{{ generation }}{%- endgeneration %}{% generation -%}x{% endgeneration -%}"
    plain = "{%- if true %}{{ generation }}{%- endif %}{% if true -%}x{% endif -%}"
    assert vocabulary.plain_template(marked) == plain


def test_vocabularies_that_do_not_fit_are_refused(tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    assert vocabulary.why_not(tokenizer, 384, 3) is None
    assert "384 tokens, 383 rows" in str(vocabulary.why_not(tokenizer, 383, 1))
    assert "room for 3 tokens that end an answer, and this model has 4" in str(vocabulary.why_not(tokenizer, 384, 4))
    tokenizer.add_tokens([AddedToken("<cut>", lstrip=True)])
    assert "doesn't strip spaces around added tokens, as '<cut>' does" in str(vocabulary.why_not(tokenizer, 400, 1))


def test_without_the_quantiser_the_cure_is_named(monkeypatch):
    monkeypatch.setattr(quantise, "has_llama_cpp", lambda: False)
    monkeypatch.setattr(quantise.shutil, "which", lambda name: None)
    assert "`pip install llama-cpp-python`" in str(quantise.why_not())
    monkeypatch.setattr(quantise.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert quantise.why_not() is None
