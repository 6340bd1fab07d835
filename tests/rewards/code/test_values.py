"""Values between processes: what is read is what was written, or an error."""

import math
from collections import deque
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.rewards.code.values import decode, encode, receive

SCALARS = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(),
  st.floats(allow_nan=False),
  st.complex_numbers(allow_nan=False),
  st.text(st.characters(exclude_categories=())),
  st.binary(),
)
HASHABLE = st.deferred(
  lambda: (
    SCALARS
    | st.lists(HASHABLE, max_size=3).map(tuple)
    | st.frozensets(HASHABLE, max_size=3)
  )
)
VALUES = st.deferred(
  lambda: (
    HASHABLE
    | st.lists(VALUES, max_size=3)
    | st.lists(VALUES, max_size=3).map(tuple)
    | st.dictionaries(HASHABLE, VALUES, max_size=3)
    | st.sets(HASHABLE, max_size=3)
  )
)


def types(value):
  """The types of a value and of all that is in it, in the order they come."""
  inner = value.items() if isinstance(value, dict) else value
  if isinstance(value, list | tuple | dict):
    return [type(value), *map(types, inner)]
  return [type(value)]


@settings(deadline=None)
@given(VALUES)
def test_a_value_survives_encode_and_decode(value):
  back = decode(encode(value))
  assert back == value
  assert types(back) == types(value)


def test_numbers_of_any_size_survive():
  for value in (9**300, -(2**70), math.inf, -math.inf, 5e-324, -0.0, True):
    back = decode(encode([value]))[0]
    assert back == value
    assert type(back) is type(value)
    assert math.copysign(1, back) == math.copysign(1, value)
  assert decode(encode(9**9999)) == 9**9999
  assert math.isnan(decode(encode(math.nan)))


def test_subclasses_are_decoded_as_their_base_class():
  class Number(int):
    def __eq__(self, other):
      return True

    __hash__ = int.__hash__

  class Items(list):
    def __eq__(self, other):
      return True

  assert decode(encode(Number(3))) != 4
  assert type(decode(encode(Number(3)))) is int
  assert decode(encode(Items([1]))) != [2]


def test_some_classes_of_the_standard_library_survive():
  for value in (
    Fraction(-1, 3),
    Decimal("0.10"),
    Decimal("NaN"),
    deque([1, (2,)]),
  ):
    back = decode(encode([value]))[0]
    assert type(back) is type(value)
    assert repr(back) == repr(value)
  with pytest.raises(ValueError, match="no class 'os.system'"):
    decode(
      encode(Fraction(1)).replace(b"18;fractions.Fraction", b"9;os.system")
    )


def test_other_objects_are_encoded_by_name_or_refused():
  thing = object()
  data = encode([thing, 1], lambda value: "thing")
  assert decode(data, {"thing": thing}.__getitem__) == [thing, 1]
  with pytest.raises(TypeError, match="object"):
    encode(thing)
  with pytest.raises(RecursionError):
    nested = []
    nested.append(nested)
    encode(nested)


PIECES = st.sampled_from(
  [b"i", b"f", b"s", b"b", b"l", b"t", b"e", b"d", b"c", b"o", b"z", b"N", b"T"]
  + [b";", b"0", b"1", b"2", b"9" * 20, b"-", b"\xff", b"nan", b"l1;"]
)


@settings(deadline=None)
@given(st.lists(PIECES, max_size=30).map(b"".join) | st.binary(max_size=50))
def test_any_bytes_are_a_value_or_an_error(data):
  try:
    encode(decode(data, str))
  except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
    pass


def test_a_frame_has_an_end_and_a_limit():
  data = (3).to_bytes(8, "big") + b"abcd"
  stream = iter([data[:2], data[2:8], b"a", b"b", b"c", b""])
  assert receive(lambda size: next(stream)) == b"abc"
  with pytest.raises(EOFError):
    receive(lambda size: b"")
  # 64 MiB are read, in parts; of one byte more, nothing is.
  stream = iter([(2**26).to_bytes(8, "big"), *[bytes(2**20)] * 64])
  assert receive(lambda size: next(stream)) == bytes(2**26)
  stream = iter([(2**26 + 1).to_bytes(8, "big")])
  with pytest.raises(ValueError, match="a frame of 67108865 bytes"):
    receive(lambda size: next(stream))
