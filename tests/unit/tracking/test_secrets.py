import pytest

from llmtune.credentials import MASK, is_secret_key, is_secret_variable, secret_in, without_credentials
from llmtune.tracking.secrets import mask_secrets

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    "key",
    ["token", "hub.token", "hf_token", "data.api_key", "client_secret", "db.password", "credential", "aws.credentials"],
)
def test_keys_of_secrets(key):
    assert is_secret_key(key)
    assert mask_secrets({key: "s3cr3t"}) == {key: MASK}


@pytest.mark.parametrize(
    "key",
    ["generate.max_tokens", "use_cls_token", "train.tokens_per_step", "eos_token", "num_supervised_tokens", "monkey"],
)
def test_keys_of_other_things(key):
    assert not is_secret_key(key)
    assert mask_secrets({key: "visible"}) == {key: "visible"}


@pytest.mark.parametrize(
    "name",
    [
        *("PGPASSWORD", "MYSQL_PWD", "SSHPASS", "DB_PASS", "GITHUB_PAT", "PASSPHRASE", "AUTHORIZATION", "HF_TOKEN"),
        *("NGROK_AUTHTOKEN", "JWT", "STRIPE_KEY", "HF_API_TOKENS", "AWS_SECRET_ACCESS_KEY", "npm_config_authtoken"),
    ],
)
def test_environment_variables_of_secrets(name):
    assert is_secret_variable(name)


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "PWD", "OLDPWD", "MAX_TOKENS", "NUM_TOKENS", "EOS_TOKEN", "TOKENIZERS_PARALLELISM", "GLIBC_COMPAT"),
        *("PROXY_BYPASS", "COMPASS_HOME", "KEYBOARD", "SSH_AUTH_SOCK", "_", "HOME", "HF_HUB_OFFLINE"),
    ],
)
def test_environment_variables_of_other_things(name):
    assert not is_secret_variable(name)


def test_a_secret_is_found_in_every_spelling(monkeypatch):
    monkeypatch.setenv("DB_PASS", 'a"b/c+d ü')
    for spelling in ('a"b/c+d ü', r"a\"b/c+d ü", r"a\"b/c+d \u00fc", "a%22b%2Fc%2Bd%20%C3%BC", "a%22b/c%2Bd%20%C3%BC"):
        assert secret_in(f"x{spelling}x") == "DB_PASS"
        assert without_credentials(f"x{spelling}x") == "x***x"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://h/db?user=u&password=p#f", "postgresql://h/db?user=u&password=***#f"),
        ("http://h/?access_token=t&x=1", "http://h/?access_token=***&x=1"),
        ("https://h/f?X-Amz-Signature=s&X-Amz-Credential=c", "https://h/f?X-Amz-Signature=***&X-Amz-Credential=***"),
        ("http://u:a@b@h", "http://h"),
        ("http://u:a/b@h, http://u:1/b?c#d@h", "http://h, http://h"),
        ("http://h:5000/#/experiments/1?max=3 a@b", "http://h:5000/#/experiments/1?max=3 a@b"),
    ],
)
def test_credentials_anywhere_in_a_uri(text, shown):
    assert without_credentials(text) == shown


def test_credentials_in_a_uri_and_unset_secrets():
    params = {"tracking.uri": "https://u:p@host/x", "hub.token": None, "seed": 1}
    assert mask_secrets(params) == {"tracking.uri": "https://host/x", "hub.token": None, "seed": 1}


def test_secrets_inside_lists_and_mappings_are_masked_too():
    params = {"data.sources": [{"id": "https://me:pw@host/x", "token": "t"}, "http://a:b@host"], "data.ids": [1, None]}
    assert mask_secrets(params) == {
        "data.sources": [{"id": "https://host/x", "token": MASK}, "http://host"],
        "data.ids": [1, None],
    }
