"""Random streams that depend on named numbers alone, so that no call elsewhere can shift them."""

import hashlib


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed for the stream that `parts` names, e.g. `derived_seed(seed, "dropout", step, rank)`."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
