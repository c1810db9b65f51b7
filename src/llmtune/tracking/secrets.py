"""How secrets among params are masked before they are recorded."""

from collections.abc import Mapping

from llmtune.credentials import MASK, is_secret_key, without_credentials


def mask_secrets(params: Mapping[str, object]) -> dict[str, object]:
    """The params with secrets replaced by `***`, and credentials taken out of URIs.

    Args:
        params: dotted key to value.
    """
    return {key: _masked(key, value) for key, value in params.items()}


def _masked(key: str, value: object) -> object:
    if is_secret_key(key) and value is not None and not isinstance(value, bool):
        return MASK
    if isinstance(value, Mapping):
        return {inner: _masked(str(inner), one) for inner, one in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(key, one) for one in value]
    return without_credentials(value) if isinstance(value, str) else value
