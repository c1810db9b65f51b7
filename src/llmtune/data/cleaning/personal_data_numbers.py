"""Card, account and phone numbers in a text."""

import re
import string
from collections.abc import Iterator

_RUN = re.compile(rb"0(?:[ _/]{0,2}+0){6,}+")
"""Seven digits or more with at most two separators between them, in a text's classes."""
_NUMBER = re.compile(
    r"""(?<![A-Za-z0-9_])(?<![0-9][.,:/*+=-])(?:
        (?P<card>[2-6][0-9]{3}(?:[0-9]{10,15}
            |(?P<gap>[ -])(?:[0-9]{4}(?P=gap)[0-9]{4}(?P=gap)[0-9]{4}(?:(?P=gap)[0-9]{1,3})?
                |[0-9]{6}(?P=gap)[0-9]{4,5})))
        |(?P<world>\+\(?[1-9](?:[ ().\/-]{0,2}+[0-9]){7,15})
        |(?P<local>(?:1[-. ])?(?:\([2-9][0-9]{2}\)[ -]?[0-9]{3}[-. ][0-9]{4}
                |(?<![0-9][ ])[2-9][0-9]{2}(?P<dash>[-. ])[0-9]{3}(?P=dash)[0-9]{4})
            |(?<![0-9][ .-])0[1-9](?P<space>[ .-])[0-9]{2}(?:(?P=space)[0-9]{2}){3}
            |(?![0-9]{5}-[0-9]{4}(?![0-9-])|[0-9]{4}[ ][0-9]{4}[ ])
                \(?0[1-9][0-9]{0,4}\)?[ /-][0-9]{3,8}(?:[ -][0-9]{2,6}){0,3}+
            )(?![ .-][0-9]{2})
        )(?![A-Za-wyz0-9_]|[.,:/*+=-][0-9])""",
    re.VERBOSE,
)
"""`world` is a phone number with its country's code. `local` is one as North America, France, Britain or Germany write
it, but no postcode (`02110-1301`) and no dump of bytes or characters (`04 05 06`, `0399 0308 0342`). All others are
told from numbers of any kind only by a word before them."""
_ANY_PHONE = re.compile(r"[+(]{0,2}[0-9](?:[ ().\/-]{0,2}+[0-9]){6,15}+(?![A-Za-z0-9_]|[.,:/*+=-][0-9])")
_PHONE_WORDS = """
    phone telephone phonenumber phoneno tel telno mobile mob mobileno mobilenumber cell cellphone fax sms whatsapp
    dial handy mobil telefon telefonnummer rufnummer handynummer telefax telefono telefone teléfono téléphone móvil
    celular тел телефон
"""
"""What a phone number of any shape follows, with two words between at most."""
_PHONE_WORD_SET = frozenset(_PHONE_WORDS.split())
_PHONE_SIGNS = ("call me", "call us", "text me", "reach me", "电话", "電話", "手机", "手機", "전화", "휴대폰")
_NO_DIGITS = re.compile(r"[^0-9\n]{0,32}")
_WORD = re.compile(r"[^\W\d_]+")
_NEAREST_WORDS = 3
_JOINING = frozenset("-_" + string.ascii_letters)
"""What makes a number a part of the word before it."""
_DATE = re.compile(
    r"(?:19|20)[0-9]{2}[ ./-]?[01][0-9][ ./-]?[0-3][0-9](?![0-9])|[0-3]?[0-9][./-][0-3]?[0-9][./-](?:19|20)"
)
_DECIMAL = re.compile(r"[+(]*[0-9]+\.[0-9]+")
_CALLING_CODE = re.compile(
    r"(?:1|7)(?=[0-9]{10}$)|2(?:[07]|[2-4][0-9]|1[12368]|5[0-8]|6[0-9]|9[01789])|4(?:[013-9]|2[013])"
    r"|3(?:[0-469]|5[0-9]|7[0-8]|8[0-35-79])|5(?:[1-8]|0[0-9]|9[0-9])|6(?:[0-6]|7[02-9]|8[0-35-9]|9[0-2])"
    r"|8(?:[1246]|0[08]|5[02356]|7[08]|8[0-368])|9(?:[0-58]|6[0-8]|7[0-79]|9[2-68])"
)
_CARD = re.compile(
    r"(?:4|5[1-5]|5018|5020|5038|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720|20[0-4])|35(?:2[89]|[3-8])"
    r"|6(?:011|4[4-9]|5|759|76[1-3]))[0-9]*(?<=^[0-9]{16})$"
    r"|3[47][0-9]{13}$|3(?:0[0-5]|[689])[0-9]+(?<=^[0-9]{14})$|62[0-9]{14,17}$"
)
"""What issuers give out: Visa, Mastercard, Maestro, Mir, JCB, Discover of 16 digits; American Express; Diners Club;
UnionPay. Old ones of 13 digits are left out: article numbers look the same."""
_IBAN_START = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}")
_FARTHEST_IBAN_START = 14
"""Characters from an account number's start to its first long run of digits."""
_IBAN_LENGTHS = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
_IBAN_LENGTH = {country: length for length, countries in _IBAN_LENGTHS.items() for country in countries.split()}
"""Characters of an account number by country, from SWIFT's IBAN registry."""
_IBAN_WRITTEN = {
    length: re.compile(rf"[A-Z]{{2}}[0-9]{{2}}(?:[ ]?[A-Z0-9]){{{length - 4}}}(?![A-Za-z0-9])")
    for length in _IBAN_LENGTHS
}


def numbers(text: str, classes: bytes) -> Iterator[tuple[str, int, int]]:
    """Kind, start and end of each number.

    Args:
        text: where they are looked for.
        classes: the text with `0` for each digit, ` ` for spaces, dots and brackets, `_` for `-`, `/` for itself.
    """
    for run in _RUN.finditer(classes):
        start, end = run.span()
        iban = _iban(text, start)
        if iban:
            yield "iban", *iban
            continue
        found = list(_shaped(text, max(0, start - 3), end))
        phone = None if found else _phone_after_word(text, start)
        yield from found
        if phone:
            yield "phone", *phone


def _shaped(text: str, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    for match in _NUMBER.finditer(text, start, end + 3):
        if match["card"]:
            card = _card(match["card"])
            if card:
                yield "card", match.start(), match.start() + len(card)
        elif _is_phone(match[0], world=bool(match["world"])):
            yield "phone", *match.span()


def _card(written: str) -> str | None:
    """The card number at the start of a text: behind four groups of four may stand something else."""
    for number in (written, written[:19]):
        digits = _digits(number)
        if _CARD.match(digits) and _passes_luhn(digits):
            return number
    return None


def _passes_luhn(digits: str) -> bool:
    """Whether the last digit is the check digit (https://en.wikipedia.org/wiki/Luhn_algorithm)."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


def _iban(text: str, run_start: int) -> tuple[int, int] | None:
    """Start and end of the account number that the run of digits is a part of."""
    for match in _IBAN_START.finditer(text, max(0, run_start - _FARTHEST_IBAN_START), run_start + 2):
        length = _IBAN_LENGTH.get(match[0][:2], 0)
        written = _IBAN_WRITTEN[length].match(text, match.start()) if length else None
        if written and _passes_mod_97(written[0].replace(" ", "")):
            return written.span()
    return None


def _passes_mod_97(iban: str) -> bool:
    """Whether the two digits behind the country check the rest (ISO 13616); letters count from 10 on."""
    return int("".join(str(int(one, 36)) for one in iban[4:] + iban[:4])) % 97 == 1


def _is_phone(written: str, *, world: bool) -> bool:
    if _DATE.match(written.lstrip("+(")) or _DECIMAL.fullmatch(written):
        return False
    digits = _digits(written)
    if world:
        return 8 <= len(digits) <= 16 and bool(_CALLING_CODE.match(digits))
    return 9 <= len(digits) <= 12


def _phone_after_word(text: str, start: int) -> tuple[int, int] | None:
    """Start and end of a number of any shape behind a word such as `phone`."""
    while start and text[start - 1] in "+(":
        start -= 1
    if not _follows_phone_word(text, start):
        return None
    match = _ANY_PHONE.match(text, start)
    if match is None or _DATE.match(match[0]) or _DECIMAL.fullmatch(match[0]):
        return None
    return match.span()


def _follows_phone_word(text: str, start: int) -> bool:
    nearby = _NO_DIGITS.match(text[max(0, start - 32) : start][::-1])
    before = nearby[0][::-1] if nearby else ""
    if len(before) < 2 or before[-1] in _JOINING:
        return False
    before = before.lower()
    words = _WORD.findall(before)[-_NEAREST_WORDS:]
    return not _PHONE_WORD_SET.isdisjoint(words) or any(sign in before for sign in _PHONE_SIGNS)


def _digits(written: str) -> str:
    return "".join(filter(str.isdigit, written))
