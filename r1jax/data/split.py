"""Which problems are for testing: decided by what they ask, for good."""

import hashlib

TEST_SHARE = 0.1


def in_test(domain: str, content: str) -> bool:
  """True for one problem in ten, which must then never be trained on.

  `content` says what is asked, in one form for all wordings of it, so that no
  seed and no order moves a problem to the other side.
  """
  text = f"{domain}\0{content}".encode("utf-8", "surrogatepass")
  digest = hashlib.blake2b(text, digest_size=8).digest()
  return int.from_bytes(digest) < TEST_SHARE * 2**64
