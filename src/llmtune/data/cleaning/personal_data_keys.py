"""Keys, tokens and passwords in a text."""

import re
from collections.abc import Iterator

from llmtune.credentials import is_secret_key, is_secret_variable

_ANCHOR = re.compile(rb"_(?=[0a_]{16})(?=[a_]{0,40}0|a[a_]{16}(?![0a_]))")
"""The last character of a token's prefix, in a text's classes. 16 characters such as tokens are made of follow, a digit
among them; Amazon's may lack one and have 17."""
_WORD = "[A-Za-z0-9_-]"
_TOKENS = (
    # GitHub, GitLab
    ("gh[pousr]_", "[A-Za-z0-9]{36,}+"),
    ("github_pat_", "[A-Za-z0-9_]{36,}+"),
    ("gl(?:pat|ptt|cbt|imt)-", rf"{_WORD}{{20,}}+"),
    ("gl(?:dt|rt|ft)-", rf"{_WORD}{{20,}}+"),
    # Slack
    ("xox[abeoprs]-", "[A-Za-z0-9-]{20,}+"),
    ("xapp-", "[A-Za-z0-9-]{20,}+"),
    # Stripe
    ("[rs]k_(?:live|test)_", "[A-Za-z0-9]{16,}+"),
    ("whsec_", "[A-Za-z0-9+/]{24,}+"),
    # OpenAI, Anthropic, OpenRouter; Groq, xAI, NVIDIA, Perplexity, Replicate
    ("sk-", rf"{_WORD}{{20,}}+"),
    ("gsk_", "[A-Za-z0-9]{40,}+"),
    ("xai-", "[A-Za-z0-9]{40,}+"),
    ("nvapi-", rf"{_WORD}{{40,}}+"),
    ("pplx-", "[A-Za-z0-9]{40,}+"),
    ("r8_", "[A-Za-z0-9]{32,}+"),
    # Hugging Face
    ("hf_", "[A-Za-z0-9]{30,}+"),
    # Google: API keys, OAuth clients
    ("AI", rf"za{_WORD}{{35}}"),
    ("GOCSPX-", rf"{_WORD}{{28}}"),
    # Amazon
    ("A[KS]I", "A[A-Z0-9]{16}"),
    # npm, PyPI, Docker, DigitalOcean, Shopify
    ("npm_", "[A-Za-z0-9]{36,}+"),
    ("pypi-", rf"{_WORD}{{50,}}+"),
    ("dckr_pat_", rf"{_WORD}{{20,}}+"),
    ("do[opr]_v1_", "[0-9a-f]{40,}+"),
    ("shp(?:at|ca|pa|ss)_", "[0-9a-fA-F]{32}"),
    # JSON web tokens
    ("eyJ", rf"{_WORD}{{8,}}+\.eyJ{_WORD}{{8,}}+(?:\.{_WORD}{{10,}}+)?"),
)
"""Prefix up to its last `_`, `-`, `I` or `J`, of one length; the rest."""
_TOKEN = re.compile(
    rf"[_\-IJ](?:{'|'.join(f'(?<=(?<!{_WORD})({prefix})){rest}' for prefix, rest in _TOKENS)})(?![A-Za-z0-9])"
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
_PRIVATE_KEY_END = re.compile(r"-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
_KEY_BODY = re.compile(r"[A-Za-z0-9+/=]{24}")
_OPEN_KEY_BODY = re.compile(r"(?:(?:\s|\\[nr])*+[A-Za-z0-9+/=]{24,}+)+")
_LONGEST_PRIVATE_KEY = 20_000
_USERINFO = re.compile(r"://([^\s:@/'\"<>{}\[\]$%;]{0,64}+:[^\s@/'\"<>{}\[\]$%;]{3,256}+)@")
_ASSIGNMENT = re.compile(rb'=(?= {0,3}"?(?:aaaaaa )?[a_+/]{0,24}0)(?= {0,3}"?(?:aaaaaa )?[0a_+/]{8})')
"""What stands before a value with a digit, in a text's classes."""
_VALUE = re.compile(
    r"""[=:][ \t]{0,2}\\?(?:(?P<quote>["'`])(?P<quoted>[^\s"'`\\]{8,}+)\\?(?P=quote)
    |["'`]?(?P<bearer>[Bb]earer[ ])?(?P<bare>[A-Za-z0-9+/_~!@\#^*.-]{12,}+={0,2}+)(?![(\[{<\w]))""",
    re.VERBOSE,
)
_NAME_REVERSED = re.compile(r"[:=!]?[ \t]{0,3}(?:[A-Za-z]{1,12}+[ \t]?:[ \t]?)?[\\\"'`\]]{0,3}([A-Za-z0-9_.-]{2,48}+)")
_LONGEST_NAME = 70
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|-")
_PASSWORD_NAME = re.compile(r"(?i)passw|passphrase")
_CHOSEN = re.compile(r"(?=.*[A-Za-z])(?=.*[0-9])[^_{}<>$%/]{8,64}")
_RUNS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_FEWEST_RUNS = 5
_LONGEST_MEAN_RUN = 3.5
"""Characters of one kind in a row; random ones make runs of about 2, words and years longer ones."""


def keys(text: str, classes: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each key, token, password in a URL or value given to a secret's name.

    Args:
        text: where they are looked for.
        classes: the text with `0` for digits, `a` and `_` for what else tokens are made of, `=` for `=` and `:`, `"`
            for quotes, `/` and `+` for what else passwords are made of.
    """
    for anchor in _ANCHOR.finditer(classes):
        token = _TOKEN.match(text, anchor.start())
        if token:
            start, end = token.start(token.lastindex or 0), token.end()
            # Words may follow `sk-` in names; the other prefixes are tokens' alone.
            if token[token.lastindex or 0] != "sk-" or _is_random(text[start:end]):
                yield start, end
    if "PRIVATE KEY" in text:
        yield from _private_keys(text)
    if "@" in text and "://" in text:
        yield from (match.span(1) for match in _USERINFO.finditer(text))
    for anchor in _ASSIGNMENT.finditer(classes):
        value = _VALUE.match(text, anchor.start())
        if value and _is_secret(value, text):
            yield value.span(value.lastgroup or 0)


def _private_keys(text: str) -> Iterator[tuple[int, int]]:
    for begin in _PRIVATE_KEY.finditer(text):
        dashes = text.find("-----", begin.end(), begin.end() + _LONGEST_PRIVATE_KEY)
        end = _PRIVATE_KEY_END.match(text, dashes) if dashes >= 0 else None
        if end and _KEY_BODY.search(text, begin.end(), dashes):
            yield begin.start(), end.end()
        elif not end and (body := _OPEN_KEY_BODY.match(text, begin.end())):
            yield begin.start(), body.end()


def _name_before(text: str, end: int) -> str:
    """The name that a value is given to, such as `DB_PASSWORD` or `client_secret` for `"clientSecret"`."""
    name = _NAME_REVERSED.match(text[max(0, end - _LONGEST_NAME) : end][::-1])
    return _CAMEL.sub("_", name[1][::-1]) if name else ""


def _is_secret(value: re.Match[str], text: str) -> bool:
    """Whether what `_VALUE` found is a secret by its name and by itself."""
    is_random = _is_random(value[value.lastgroup or 0])
    if value["bearer"]:
        return is_random
    name = _name_before(text, value.start())
    if not (is_secret_key(name) or (name.isupper() and is_secret_variable(name))):
        return False
    # People choose passwords; every other secret is drawn by chance.
    return is_random or bool(value["quoted"] and _PASSWORD_NAME.search(name) and _CHOSEN.fullmatch(value["quoted"]))


def _is_random(value: str) -> bool:
    """Whether a value is more likely drawn by chance than made of words, names and versions."""
    runs = _RUNS.findall(value)
    if len(runs) < _FEWEST_RUNS or not any(run[0].isdigit() for run in runs):
        return False
    return sum(map(len, runs)) <= _LONGEST_MEAN_RUN * len(runs)
