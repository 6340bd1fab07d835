"""The order in which a dataset is read: endless epochs, each shuffled."""

import functools
import hashlib


@functools.lru_cache(maxsize=64)
def shuffled(size: int, seed: int):
  """Returns a dataset of indices, whose i-th element is read i-th, for i >= 0.

  Each `size` consecutive elements are one epoch, in an order of its own.
  """
  import grain  # The import takes a second.

  return grain.MapDataset.range(size).shuffle(seed=seed).repeat()


def seed_of(*parts: int | str) -> int:
  """Returns a seed below 2^32 that is a hash of the parts."""
  digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
  return int.from_bytes(digest)
