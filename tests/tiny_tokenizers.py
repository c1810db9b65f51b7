"""Tokenizers of a few tokens that work as those of well-known models do."""

from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
PREFIXED = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
REPLACED = normalizers.Replace(" ", SPACE)


def byte_level(*steps: Any, ignore_merges: bool = False) -> PreTrainedTokenizerFast:
    """Bytes and three merges, cut into words by the steps."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet, "he", "Ġhe", "12"])}
    merges = [("h", "e"), ("Ġ", "he"), ("1", "2")]
    tokenizer = Tokenizer(models.BPE(tokens, merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def expression(pattern: str) -> tuple[Any, Any]:
    """Steps that cut words by an expression."""
    return (pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False))


def sentencepiece(normalizer: Any, merges: Any = None, byte_fallback: bool = True) -> PreTrainedTokenizerFast:
    """As SentencePiece models are turned into merges: every way to make each token, the likeliest token first."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), SPACE, *"aehnt", "he", "the"]
    tokens += ["t" + "h", f"{SPACE}the", f"{SPACE}a", f"{SPACE}{SPACE}"]
    numbered = {token: number for number, token in enumerate(tokens)}
    default = [
        ("h", "e"),
        ("t", "h"),
        ("t", "he"),
        ("th", "e"),
        (SPACE, "the"),
        (SPACE, "a"),
        (SPACE, SPACE),
    ]
    model = models.BPE(numbered, merges or default, unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizer
    decoding = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if "Prepend" in str(normalizer):
        decoding.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(decoding)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
