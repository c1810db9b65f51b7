import pytest

from llmtune.credentials import MASK, is_secret_key
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


def test_credentials_in_a_uri_and_unset_secrets():
    params = {"tracking.uri": "https://u:p@host/x", "hub.token": None, "seed": 1}
    assert mask_secrets(params) == {"tracking.uri": "https://host/x", "hub.token": None, "seed": 1}


def test_secrets_inside_lists_and_mappings_are_masked_too():
    params = {"data.sources": [{"id": "https://me:pw@host/x", "token": "t"}, "http://a:b@host"], "data.ids": [1, None]}
    assert mask_secrets(params) == {
        "data.sources": [{"id": "https://host/x", "token": MASK}, "http://host"],
        "data.ids": [1, None],
    }
