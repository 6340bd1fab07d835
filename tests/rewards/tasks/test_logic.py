"""Logic: values are compared as values, and all else as text."""

import pytest

from r1jax.rewards.tasks import logic
from r1jax.types import Example


@pytest.mark.parametrize(
  ("gold", "answer", "expected"),
  [
    ("Yes", "yes.", 1.0),
    ("Yes", "True", 1.0),
    ("no", "yes", 0.0),
    ("the red house", "The  red house.", 1.0),
    ("the red house", "the blue house", 0.0),
    ('{"a": 1, "b": [2]}', "{'b': (2,), 'a': 1.0}", 1.0),
    ('{"a": 1}', '{"a": 2}', 0.0),
    ('{"a": 1}', '```json\n{"a": 1}\n```', 1.0),
    ("[1, 2]", "[2, 1]", 0.0),
    ("[1, true]", "[1, True]", 1.0),
    ("[1, true]", "[1, 1]", 0.0),
    ("{1, 2}", "{2, 1}", 1.0),
    ("12", "12.0", 1.0),
    ("12", "12 or 13", 0.0),
    ("12", "__import__('os')", 0.0),
    ("12", "6+6", 0.0),
    ("12", "(" * 5000 + "12", 0.0),
    ("12", "[" * 10**6, 0.0),
    ("12", "9" * 10**5, 0.0),
    ("", "", 1.0),
  ],
)
def test_values_and_texts(gold, answer, expected):
  assert logic.grade(Example("", gold, "logic"), answer) == expected
