"""Personal data is found by its shape and check digits, and masked without touching anything else."""

import pytest

from llmtune.data.cleaning.personal_data import KINDS, Found, find_personal_data, mask_personal_data, spans
from llmtune.data.records import Record

pytestmark = pytest.mark.fast

# Secrets are made up here from parts, so that nothing in this file looks like one.
MIXED = "a1B2c3D4e5F6g7H8i9K0" * 5
HEX = "0f1e2d3c4b5a6978" * 4
BASE64 = "MIIBOgIBAAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf9Cnzj4p4WGeKLs1Pt8Qu" * 3
DASHES = "-" * 5


def found_in(text):
    return [(found.kind, text[found.start : found.end]) for found in spans(text)]


def row(**parts):
    return Record("a.jsonl", 1, **parts)


EMAILS = [
    ("jane.doe@example.com", "jane.doe@example.com"),
    ("Write to Jane <jane+news@mail.example.co.uk>.", "jane+news@mail.example.co.uk"),
    ("mailto:a_b@x-y.org?subject=hi", "a_b@x-y.org"),
    ("jürgen@müller.de", "jürgen@müller.de"),
    ("联系user@163.com谢谢", "user@163.com"),
    ("Ask john@site.com.Then wait", "john@site.com"),
    ("JOHN@EXAMPLE.ORG", "JOHN@EXAMPLE.ORG"),
    (r"'hello\njohn@example.org'", "john@example.org"),
    ("...--j.d@a.museum!", "j.d@a.museum"),
]


@pytest.mark.parametrize(("text", "address"), EMAILS)
def test_finds_emails(text, address):
    assert found_in(text) == [("email", address)]


@pytest.mark.parametrize(
    "text",
    [
        "@pytest.mark.fast",
        "y = x@w.t()",
        "y = x@w.to(device) + x@w.id[0]",
        "scores = query@key.transpose(-2, -1)",
        "A@B.T",
        "h@self.weight.mT",
        "icon@2x.png",
        "react@18.2.0",
        "git clone git@github.com:org/repo",
        "ssh://jane@host.org/path",
        "%s@example.com",
        "${USER}@example.com and {name}@example.com and $USER@example.com",
        "root@localhost",
        "a @ b.com",
        "a@.com a@-b.com @example.com",
    ],
)
def test_what_is_no_email(text):
    assert found_in(text) == []


PHONES = [
    ("+1 555 123 4567", "+1 555 123 4567"),
    ("call +14155552671, please", "+14155552671"),
    ("+49 (0)30 901820-12", "+49 (0)30 901820-12"),
    ("+86 138 0013 8000", "+86 138 0013 8000"),
    ("+44 20 7946 0958.", "+44 20 7946 0958"),
    ("tel:+1-816-555-1212", "+1-816-555-1212"),
    ("(415) 555-2671", "(415) 555-2671"),
    ("415-555-2671 or", "415-555-2671"),
    ("415.555.2671x12", "415.555.2671"),
    ("my number is 415 555 2671", "415 555 2671"),
    ("1-800-555-0199", "1-800-555-0199"),
    ("020 7946 0958", "020 7946 0958"),
    ("06 12 34 56 78", "06 12 34 56 78"),
    ("(0171) 1234567", "(0171) 1234567"),
    ("030/1234567", "030/1234567"),
    ("phone: 5551234567", "5551234567"),
    ('"phoneNumber": "5551234"', "5551234"),
    ("Call me at 12345678", "12345678"),
    ("Tel. (12) 345 67 89", "(12) 345 67 89"),
    ("我的电话是13800138000。", "13800138000"),
]


@pytest.mark.parametrize(("text", "number"), PHONES)
def test_finds_phone_numbers(text, number):
    assert found_in(text) == [("phone", number)]


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-15 10:30:00",
        "+2024-01-15 in a diff",
        "phone bought on 2024-01-15",
        "1700000000 and 1700000000123",
        "x + 12345678 * y",
        "x+12345678",
        "+1.23456789",
        "+1 555 123 456",
        "+0123456789",
        "+999 123 456 789",
        "3.14159265358979",
        "978-3-16-148410-0",
        "Boston, MA 02110-1301",
        "192.168.100.200",
        "01 02 03 04 05 06 07 08",
        "0399 0308 0342",
        "555-123-4567-89",
        "a415-555-2671",
        "deadbeef415-555-2671a",
        "telling 12345678",
        "call(12345678)",
        "hotel 12345678",
        "phone-12345678",
        "phone_12345678",
    ],
)
def test_what_is_no_phone_number(text):
    assert found_in(text) == []


CARDS = [
    ("4111 1111 1111 1111", "4111 1111 1111 1111"),
    ("4111-1111-1111-1111 12/25 123", "4111-1111-1111-1111"),
    ("4111 1111 1111 1111 123", "4111 1111 1111 1111"),
    ("card=4242424242424242&x", "4242424242424242"),
    ("5555555555554444", "5555555555554444"),
    ("2221000000000009", "2221000000000009"),
    ("378282246310005", "378282246310005"),
    ("3782 822463 10005", "3782 822463 10005"),
    ("6011111111111117", "6011111111111117"),
    ("3530111333300000", "3530111333300000"),
    ("30569309025904", "30569309025904"),
    ("卡号4111111111111111谢谢", "4111111111111111"),
]


@pytest.mark.parametrize(("text", "number"), CARDS)
def test_finds_cards(text, number):
    assert found_in(text) == [("card", number)]


@pytest.mark.parametrize(
    "text",
    [
        "4111111111111112",
        "4111 1111 1111 1112",
        "1111111111111117",
        "9111111111111111",
        "4222222222222",
        "0.4111111111111111",
        "4111111111111111.5",
        "4111111111111111e10",
        "a4111111111111111",
        "41111111111111111",
        "4111 1111-1111 1111",
    ],
)
def test_what_is_no_card(text):
    assert found_in(text) == []


IBANS = [
    ("DE89 3704 0044 0532 0130 00", "DE89 3704 0044 0532 0130 00"),
    ("to DE89370400440532013000, today", "DE89370400440532013000"),
    ("GB82 WEST 1234 5698 7654 32 and", "GB82 WEST 1234 5698 7654 32"),
    ("FR14 2004 1010 0505 0001 3M02 606", "FR14 2004 1010 0505 0001 3M02 606"),
    ("NO93 8601 1117 947", "NO93 8601 1117 947"),
    ("MT84MALT011000012345MTLCAST001S", "MT84MALT011000012345MTLCAST001S"),
    ("NL91 ABNA 0417 1643 00", "NL91 ABNA 0417 1643 00"),
]


@pytest.mark.parametrize(("text", "number"), IBANS)
def test_finds_account_numbers(text, number):
    assert found_in(text) == [("iban", number)]


@pytest.mark.parametrize(
    "text",
    [
        "DE89 3704 0044 0532 0130 01",
        "DE98370400440532013000",
        "DE8937040044053201300",
        "DE893704004405320130000",
        "ZZ89370400440532013000",
        "XDE89370400440532013000",
    ],
)
def test_what_is_no_account_number(text):
    assert found_in(text) == []


TOKENS = [
    "AK" + "IA" + "IOSFODNN7EXAMPLE",
    "AS" + "IA" + "ABCDEFGHQRSTUVWX",
    "gh" + "p_" + MIXED[:36],
    "github" + "_pat_" + MIXED[:22] + "_" + MIXED[:59],
    "gl" + "pat-" + MIXED[:20],
    "xo" + "xb-123456789012-1234567890123-" + MIXED[:24],
    "sk" + "_live_" + MIXED[:24],
    "sk" + "-" + MIXED[:48],
    "sk" + "-proj-" + MIXED[:40] + "_" + MIXED[:30] + "-" + MIXED[:20],
    "sk" + "-ant-api03-" + MIXED[:93] + "AA",
    "hf" + "_" + MIXED[:34],
    "AI" + "za" + MIXED[:35],
    "npm" + "_" + MIXED[:36],
    "ey" + "JhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0." + MIXED[:43],
]


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize(
    "around", ["{}", "Use {}.", "KEY={}", 'x = "{}"', "令牌{}谢谢", "curl -H 'X: {}'", "https://a.b/?k={}&c=1"]
)
def test_finds_tokens(token, around):
    assert found_in(around.format(token)) == [("key", token)]


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ('password = "Tr0ub4dor&3"', "Tr0ub4dor&3"),
        ("password: 'Summer2024!'", "Summer2024!"),
        (f"export DB_PASSWORD={MIXED[:20]}", MIXED[:20]),
        (f'"clientSecret": "{MIXED[:32]}",', MIXED[:32]),
        (rf"{{\"api_key\": \"{MIXED[:32]}\"}}", MIXED[:32]),
        (f"api_key: str = '{HEX[:32]}'", HEX[:32]),
        (f"os.environ['SECRET_KEY'] = '{MIXED[:32]}'", MIXED[:32]),
        ("aws_secret_access_key = " + "wJalrXUtnFEMI/" + "K7MDENG/bPxRfiCYEXAMPLEKEY", None),
        (f"STRIPE_KEY={MIXED[:24]}", MIXED[:24]),
        (f"?access_token={HEX[:40]}&x=1", HEX[:40]),
        (f"Authorization: Bearer {MIXED[:40]}", MIXED[:40]),
        ("https://admin:hunter2@db.example.com/x", "admin:hunter2"),
        (f"redis://:{MIXED[:10]}@cache:6379", f":{MIXED[:10]}"),
    ],
)
def test_finds_values_of_secrets(text, secret):
    assert found_in(text) == [("key", secret or text.split(" = ")[1])]


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
@pytest.mark.parametrize("line_end", ["\n", r"\n"])
def test_finds_private_keys_whole(kind, line_end):
    lines = [
        f"{DASHES}BEGIN {kind}PRIVATE KEY{DASHES}",
        BASE64[:64],
        BASE64[64:100],
        f"{DASHES}END {kind}PRIVATE KEY{DASHES}",
    ]
    key = line_end.join(lines)
    assert found_in(f"key: {key}\nbye") == [("key", key)]


def test_finds_a_private_key_that_is_cut_off():
    key = f"{DASHES}BEGIN PRIVATE KEY{DASHES}\n{BASE64[:64]}\n{BASE64[:30]}"
    assert found_in(f"{key}\nshort words") == [("key", key)]


@pytest.mark.parametrize(
    "text",
    [
        f"{DASHES}BEGIN PRIVATE KEY{DASHES}",
        f'header = "{DASHES}BEGIN PRIVATE KEY{DASHES}" # {DASHES}END PRIVATE KEY{DASHES}',
        "gh" + "p_" + "x" * 36,
        "gh" + "p_" + MIXED[:20],
        "AK" + "IA" + "short",
        "AK" + "IA" + "IOSFODNN7EXAMPLEX",
        "sk" + "-learn-datasets-version-2-of-things",
        "my_hf" + "_" + MIXED[:34],
        "hf_olmo_converted_checkpoints_1_of_2_long_name",
        "password = get_password_from_vault_2()",
        'password = "test_password_123"',
        'password = "changeme"',
        "token = tokens_v2_large_model",
        'eos_token = "<|endoftext|>"',
        f"max_tokens = {MIXED[:20]}",
        f'digest = "{HEX}"',
        f"commit: {HEX[:40]}",
        "https://{user}:{password}@host.org",
        "https://$USER:$PASS@host.org",
        "https://host.org:8080/@jane",
        "uuid: f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
    ],
)
def test_what_is_no_key(text):
    assert found_in(text) == []


def test_what_overlaps_is_one():
    # Masking either alone would leave a rest of the other.
    assert found_in("x +14155552671@sms.example.com y") == [("phone", "+14155552671@sms.example.com")]


def test_a_host_behind_a_key_is_no_address():
    assert found_in(f"https://{TOKENS[2]}@mail.example.com/x") == [("key", TOKENS[2])]


def test_places_are_the_texts_own():
    text = "Ä😀\ud800 jane@example.com 字 +49 30 901820"
    assert spans(text) == [Found("email", 4, 20), Found("phone", 23, 36)]


def test_finds_in_every_part_of_a_record():
    tools = ({"name": "mail", "to": {"default": ["a@example.com"]}},)
    messages = (
        {"role": "system", "content": "b@example.com"},
        {"role": "user", "content": "4111 1111 1111 1111"},
        {
            "role": "assistant",
            "reasoning_content": "c@example.com",
            "tool_calls": [{"arguments": {"to": "d@example.com"}}],
        },
    )
    assert find_personal_data(row(messages=messages, tools=tools)) == ["email", "card", "email", "email", "email"]
    assert find_personal_data(row(prompt="a@example.com", completion="+49 30 901820", system="b@example.com")) == [
        "email",
        "phone",
        "email",
    ]
    assert find_personal_data(row(text="a@example.com b@example.com")) == ["email", "email"]
    assert find_personal_data(row(text="nothing here")) == []


def test_masks_each_kind():
    text = f"jane@example.com; +49 30 901820; 4111 1111 1111 1111; DE89370400440532013000; {TOKENS[0]}; end"
    masked = mask_personal_data(row(text=text, group="g"))
    assert masked == row(text="[EMAIL]; [PHONE]; [CARD]; [IBAN]; [KEY]; end", group="g")
    assert {name.strip("[];") for name in masked.text.split()[:-1]} == {kind.upper() for kind in KINDS}


def test_keys_that_are_masked_lose_no_entry():
    arguments = {"joe@example.com": 1, "[EMAIL]": 2, "x": {"ann@example.com": 3}, "ann@example.com": 4}
    call = {"function": {"name": "f", "arguments": arguments}}
    record = row(messages=({"role": "assistant", "content": "", "tool_calls": [call]},))
    assert find_personal_data(record) == ["email"] * 3
    masked = mask_personal_data(record)
    (made,) = masked.messages[0]["tool_calls"]
    assert made["function"]["arguments"] == {"[EMAIL] 2": 1, "[EMAIL]": 2, "x": {"[EMAIL]": 3}, "[EMAIL] 3": 4}
    assert find_personal_data(masked) == []


def test_masks_values_and_keys_and_keeps_the_rest():
    messages = (
        {"role": "user", "content": "Mail a@example.com"},
        {"role": "assistant", "tool_calls": [{"arguments": {"b@example.com": "b@example.com", "n": 4111111111111111}}]},
    )
    tools = ({"name": "mail", "pair": ("c@example.com", None, True)},)
    assert mask_personal_data(row(messages=messages, tools=tools)) == row(
        messages=(
            {"role": "user", "content": "Mail [EMAIL]"},
            {"role": "assistant", "tool_calls": [{"arguments": {"[EMAIL]": "[EMAIL]", "n": 4111111111111111}}]},
        ),
        tools=({"name": "mail", "pair": ("[EMAIL]", None, True)},),
    )
    assert messages[0]["content"] == "Mail a@example.com"
    shapes = row(prompt="a@example.com?", completion="b@example.com!", system="c@example.com", is_instruction=True)
    assert mask_personal_data(shapes) == row(
        prompt="[EMAIL]?", completion="[EMAIL]!", system="[EMAIL]", is_instruction=True
    )


def test_a_record_without_any_is_itself():
    record = row(messages=({"role": "user", "content": "hello"},))
    assert mask_personal_data(record) is record


def test_masks_what_masking_lays_bare():
    # Behind more digits, three groups of digits are no phone number; behind a placeholder they are.
    assert found_in("4111 1111 1111 1111 415 555 2671") == [("card", "4111 1111 1111 1111")]
    masked = mask_personal_data(row(text="4111 1111 1111 1111 415 555 2671"))
    assert masked.text == "[CARD] [PHONE]"
    assert mask_personal_data(masked) is masked
