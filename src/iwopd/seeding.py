"""One way to make random seeds, so that nothing random depends on what ran before."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from (seed, step, prompt, sample) or any other parts; equal parts give equal seeds everywhere."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
