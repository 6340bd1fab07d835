"""The order in which a dataset is read: epochs without end, each shuffled."""

import functools
import hashlib


@functools.lru_cache(maxsize=64)
def shuffled(size: int, seed: int):
  """What `shuffled(size, seed)[i]` reads i-th, for any i >= 0.

  Each run of `size` indices is one epoch, with an order of its own.
  """
  import grain  # A second to import.

  return grain.MapDataset.range(size).shuffle(seed=seed).repeat()


def seed_of(*parts: int | str) -> int:
  """A seed below 2^32 for what the parts name; another name, another seed."""
  digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
  return int.from_bytes(digest)
