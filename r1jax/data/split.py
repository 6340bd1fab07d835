"""The split into training and test problems, by a hash of their content."""

import hashlib

TEST_SHARE = 0.1


def in_test(domain: str, content: str) -> bool:
  """Whether a problem belongs to the test split, as one in ten does.

  `content` is a normal form of the question, equal for all of its wordings. A
  problem is therefore always in the same split, whatever the seed and order.
  """
  text = f"{domain}\0{content}".encode("utf-8", "surrogatepass")
  digest = hashlib.blake2b(text, digest_size=8).digest()
  return int.from_bytes(digest) < TEST_SHARE * 2**64
