"""Conversations, and the ids of special tokens."""


def conversation(*contents, system=None):
  """Returns a conversation in turns, the user's first."""
  roles = ("user", "assistant") * len(contents)
  first = [] if system is None else [dict(role="system", content=system)]
  return first + [
    dict(role=role, content=content) for role, content in zip(roles, contents)
  ]


def id_of(tokenizer, name="<|im_end|>"):
  """Returns the id of a special token, by name."""
  (number,) = tokenizer.encode(name)
  return number
