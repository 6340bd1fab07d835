"""Texts packed into one row do not influence each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import ops
from r1jax.data import packing
from r1jax.models import transformer
from r1jax.models.rows import mtp_targets

WIDTH, ROWS = 24, 6
RNG = np.random.default_rng(0)


def draw(size):
  return RNG.integers(0, 40, size).tolist()


# Prompts, and the completions of each.
TEXTS = [[]] * 4, [[draw(n)] for n in (9, 8, 5, 11)]
PROMPTED = [draw(4) for _ in range(3)], [[draw(n)] for n in (3, 6, 8)]
SHARED = [draw(6)], [[draw(n) for n in (4, 7, 5)]]


def lay_out(prompts, groups, rows, width=WIDTH, stride=100):
  """The completions in one microbatch."""
  (placement,) = packing.pack(
    np.array([*map(len, prompts)]),
    np.array([[*map(len, group)] for group in groups]),
    widths=[width],
    rows=rows,
  )
  return packing.lay_out(
    placement,
    prompts,
    sum(groups, []),
    group_size=len(groups[0]),
    stride=stride,
  )


def concatenate(*rows):
  return jax.tree.map(lambda *x: np.concatenate(x), *rows)


def pack_together_and_alone(prompts, groups):
  """The completions packed in few rows, and each in a row of its own."""
  few = 1 if len(prompts) == 1 else 2
  together = lay_out(prompts, groups, few)
  singles, origin = [], 0
  for prompt, group in zip(prompts, groups):
    for completion in group:
      row = lay_out([prompt], [[completion]], 1)
      first = np.where(row.origin >= 0, origin, 0)
      singles.append(row.replace(origin=row.origin + first))
      origin += 100
  empty = lay_out([[]], [[[1]]], ROWS)
  padded = lambda x: jax.tree.map(lambda leaf: leaf[:ROWS], x)
  return tuple(padded(concatenate(*x, empty)) for x in ([together], singles))


@pytest.fixture(scope="module")
def evaluate(toy):
  """A function that returns logprobs by origin, those of the MTP block too, and
  the gradient of a weighted loss."""

  def values(params, packed):
    result = transformer.forward(toy.model, params, packed, mtp=True)
    of = lambda hidden, targets: ops.linear_logprobs(
      hidden.reshape(-1, hidden.shape[-1]), params["unembed"], targets.ravel()
    )[0].reshape(targets.shape)
    mtp_target, follows = mtp_targets(packed)
    return (
      of(result.hidden, packed.targets),
      of(result.mtp_hidden[0], mtp_target),
      follows,
    )

  @jax.jit
  def run(params, packed, weights):
    def loss(params):
      next_one, mtp_target, follows = values(params, packed)
      at = weights[jnp.maximum(packed.origin, 0)]
      loss = jnp.sum(jnp.where(packed.origin >= 0, at * next_one, 0.0))
      return loss + jnp.sum(jnp.where(follows, at * mtp_target, 0.0))

    return values(params, packed), jax.grad(loss)(params)

  def at_origin(packed):
    (next_one, mtp_target, follows), grads = run(
      toy.params, jax.tree.map(jnp.asarray, packed), WEIGHTS
    )
    table = {}
    for row, slot in np.argwhere(packed.origin >= 0):
      two = float(mtp_target[row, slot]) if follows[row, slot] else None
      table[int(packed.origin[row, slot])] = float(next_one[row, slot]), two
    return table, grads

  return at_origin


WEIGHTS = jnp.asarray(RNG.uniform(0.5, 1.5, 1000).astype(np.float32))


@pytest.mark.parametrize("kind", ["texts", "prompted", "shared"])
def test_packed_rows_equal_rows_of_single_texts(evaluate, kind):
  together, alone = pack_together_and_alone(
    *{"texts": TEXTS, "prompted": PROMPTED, "shared": SHARED}[kind]
  )
  used = [(p.positions >= 0).any(axis=1).sum() for p in (together, alone)]
  assert used[0] < used[1]
  assert together.prefix_end.any() == (kind == "shared")
  one, one_grads = evaluate(together)
  other, other_grads = evaluate(alone)
  assert one.keys() == other.keys()
  for origin, (next_one, mtp_target) in one.items():
    assert next_one == pytest.approx(other[origin][0], abs=1e-4)
    assert (mtp_target is None) == (other[origin][1] is None)
    if mtp_target is not None:
      assert mtp_target == pytest.approx(other[origin][1], abs=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3, rtol=1e-3),
    one_grads,
    other_grads,
  )
  assert np.abs(one_grads["moe"]["attention"]["kv_up"]).max() > 0.1


def test_empty_slots_have_no_influence(evaluate):
  clean, _ = pack_together_and_alone(*PROMPTED)
  unused = clean.positions < 0
  dirty = clean.replace(
    tokens=np.where(unused, 17, clean.tokens).astype(np.int32),
    targets=np.where(unused, 9, clean.targets).astype(np.int32),
  )
  (one, one_grads), (other, other_grads) = evaluate(clean), evaluate(dirty)
  assert one == other
  jax.tree.map(np.testing.assert_array_equal, one_grads, other_grads)


def test_the_future_has_no_influence(toy):
  """Neither of later tokens nor of other texts in the row."""
  tokens = np.asarray([draw(WIDTH) for _ in range(ROWS)], np.int32)
  changed = tokens.copy()
  changed[:, 10:] = (changed[:, 10:] + 7) % 40
  one, other = (
    toy.forward(toy.params, transformer.pack_rows(t)) for t in (tokens, changed)
  )
  np.testing.assert_array_equal(one.hidden[:, :10], other.hidden[:, :10])
  assert np.abs(one.hidden[:, 10:] - other.hidden[:, 10:]).max() > 0.1
  # The MTP block knows one token more.
  np.testing.assert_array_equal(
    one.mtp_hidden[0, :, :9], other.mtp_hidden[0, :, :9]
  )
  assert (
    np.abs(one.mtp_hidden[0, :, 9] - other.mtp_hidden[0, :, 9]).max() > 0.01
  )


def test_every_earlier_token_has_influence(toy):
  tokens = np.asarray([draw(WIDTH) for _ in range(ROWS)], np.int32)
  before = toy.forward(toy.params, transformer.pack_rows(tokens)).hidden
  for t in range(3):
    tokens[t, t] = (tokens[t, t] + 1) % 40
  after = toy.forward(toy.params, transformer.pack_rows(tokens)).hidden
  for t in range(3):
    assert np.abs(before[t, -1] - after[t, -1]).max() > 1e-4


def test_empty_slots_do_not_count_in_the_expert_load(toy):
  packed, _ = pack_together_and_alone(*TEXTS)
  load = toy.forward(toy.params, packed).expert_load
  used = (packed.positions >= 0).sum()
  each = used * toy.config.experts.per_token
  np.testing.assert_array_equal(load.sum(axis=1), [each] * 3)


def test_mtp_targets_are_the_tokens_after_the_next_of_the_same_text():
  full = [draw(4), draw(4)]  # Completions that fill their [P, G, Tc].
  packed = concatenate(
    lay_out([draw(3)], [full], 1, stride=4), lay_out(*TEXTS, 3)
  )
  targets, follows = map(np.asarray, mtp_targets(packed))
  texts = {}  # By row: slots of each text in order.
  for row, slot in np.argwhere(packed.origin >= 0):
    last = texts.get((row, slot - 1))
    texts[row, slot] = (
      last
      if last is not None
      and packed.positions[row, slot] == packed.positions[row, slot - 1] + 1
      else (row, slot)
    )
  for row, slot in np.ndindex(packed.tokens.shape):
    text = texts.get((row, slot))
    expected = text is not None and texts.get((row, slot + 1)) == text
    assert follows[row, slot] == expected, (row, slot)
    if expected:
      assert targets[row, slot] == packed.targets[row, slot + 1]
  # Each text but its last token.
  assert follows.sum() == 2 * 3 + sum(len(text) - 2 for (text,) in TEXTS[1])


def test_pack_rows_is_pack_of_whole_rows():
  tokens = np.asarray([draw(7), draw(7)], np.int32)
  by_hand = transformer.pack_rows(tokens)
  packed = lay_out(
    [[], []], [[row] for row in tokens.tolist()], 2, width=7, stride=7
  )
  counted = packed.origin >= 0
  np.testing.assert_array_equal(by_hand.origin, packed.origin)
  np.testing.assert_array_equal(
    by_hand.targets[counted], packed.targets[counted]
  )
  np.testing.assert_array_equal(by_hand.tokens[counted], packed.tokens[counted])
