"""Identity of a KV block: a keyed hash chained over everything its content depends on."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence

HASH_BYTES = 16
ROOT = bytes(HASH_BYTES)
_KEY = b"splice.kv.block.v1"


def root_hash(cache_salt: bytes = b"", adapter: str = "", media: Sequence[tuple[int, bytes]] = ()) -> bytes:
    """Parent of a request's first block; requests that must not share KV get different roots.

    `media` holds (position, content hash) of each medium in the prompt.
    """
    if not cache_salt and not adapter and not media:
        return ROOT
    digest = hashlib.blake2b(key=_KEY, digest_size=HASH_BYTES, person=b"root")
    media_parts = (position.to_bytes(8, "little") + content for position, content in media)
    for part in (cache_salt, adapter.encode(), *media_parts):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def block_hash(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Hash of one full block given its parent's hash; 16 bytes."""
    digest = hashlib.blake2b(parent, key=_KEY, digest_size=HASH_BYTES)
    digest.update(array("I", tokens).tobytes())
    return digest.digest()


def prompt_end_hash(parent: bytes, num_prompt_tokens: int) -> bytes:
    """Parent of the block that holds the first token after a prompt, where KV depends on where the prompt ended."""
    digest = hashlib.blake2b(parent, key=_KEY, digest_size=HASH_BYTES, person=b"prompt end")
    digest.update(num_prompt_tokens.to_bytes(8, "little"))
    return digest.digest()


def chain(tokens: Sequence[int], block_tokens: int, root: bytes = ROOT) -> Iterator[bytes]:
    """Hashes of the full blocks of `tokens`, first to last; a partial last block has none."""
    parent = root
    for end in range(block_tokens, len(tokens) + 1, block_tokens):
        parent = block_hash(parent, tokens[end - block_tokens : end])
        yield parent
