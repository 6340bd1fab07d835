"""Tokens are what one draw finds in the true distribution, however many slots
share the work; and no program holds a distribution per token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import packed as packed_rows
import pytest

from r1jax.models import cache as caches
from r1jax.models import transformer
from r1jax.parallel.mesh import make_mesh
from r1jax.rollouts import slots
from r1jax.rollouts.engine import make_engine
from r1jax.rollouts.sampling import completion_keys, token_keys

TOKENS, VOCABULARY = 37, 40
SEED, ROUND, GROUP, MOST = 3, 2, 8, 12
PROMPTS = [[7, 1, 30], [4], [9, 9], [12, 0, 5, 6], [3, 3, 3]]
CLOSE = 1e-5


def make(toy, num_slots, temperature=1.0):
  return make_engine(
    toy.model,
    toy.words,
    make_mesh(data=1),
    (),
    num_slots=num_slots,
    decode_steps=3,
    prompt_tokens=6,
    max_tokens=MOST,
    temperature=temperature,
  )


@pytest.fixture(scope="module")
def logits(toy):
  """`logits(rollout)`: the trainer's for every token of a completion
  [P, G, Tc, V], in float64; ids that do not exist at minus infinity."""

  @jax.jit
  def jitted(params, packed):
    hidden = transformer.forward(toy.model, params, packed).hidden
    return transformer.logits(params, hidden)

  def logits(rollout):
    packed = packed_rows.of_rollout(rollout, 48, rows=16)
    rows = jax.tree.map(jnp.asarray, packed)
    values = np.float64(jitted(toy.params, rows))
    values[..., TOKENS:] = -np.inf
    out = np.zeros((rollout.completions.size, VOCABULARY))
    placed = packed.origin >= 0
    out[packed.origin[placed]] = values[placed]
    return out.reshape(*rollout.completions.shape, VOCABULARY)

  return logits


def log_softmax(logits):
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def draws(shape):
  """The uniform numbers behind all tokens [P, G, Tc], from their names."""
  prompts, members, positions = np.indices(shape).reshape(3, -1)
  keys = completion_keys(SEED, ROUND, jnp.array(prompts), jnp.array(members))
  keys = token_keys(keys, jnp.array(positions))
  return np.float64(jax.vmap(jax.random.uniform)(keys)).reshape(shape)


def misplaced(rollout, logprobs, uniform):
  """How far each draw lies outside its token's part of the unit interval."""
  ends = np.cumsum(np.exp(logprobs), axis=-1)
  ends = np.concatenate([np.zeros_like(ends[..., :1]), ends], axis=-1)
  at = rollout.completions[..., None]
  below, above = (
    np.take_along_axis(ends, at + i, axis=-1)[..., 0] for i in (0, 1)
  )
  return np.maximum(np.maximum(below - uniform, uniform - above), 0)


@pytest.mark.parametrize("num_slots", [4, 8])
def test_a_token_is_where_its_draw_falls(toy, logits, num_slots):
  """So that tokens of different slot counts differ only where the draw lies
  within 1e-5 of a boundary of the true distribution function."""
  rollout = make(toy, num_slots)(
    toy.params, PROMPTS, GROUP, seed=SEED, round=ROUND
  )
  logprobs, mask = log_softmax(logits(rollout)), rollout.sampled_mask
  uniform = draws(mask.shape)
  assert mask.sum() > 200
  assert misplaced(rollout, logprobs, uniform)[mask].max() < CLOSE
  chosen = np.take_along_axis(logprobs, rollout.completions[..., None], -1)
  np.testing.assert_allclose(
    rollout.logprobs[mask], chosen[..., 0][mask], atol=CLOSE
  )
  # It would show: another draw, another policy, or a neighbour's text.
  assert misplaced(rollout, logprobs, uniform[::-1])[mask].max() > 0.5
  cooler = log_softmax(logits(rollout) / 0.99)
  assert misplaced(rollout, cooler, uniform)[mask].max() > 10 * CLOSE
  others = rollout.replace(completions=np.roll(rollout.completions, 1, axis=1))
  assert misplaced(others, logprobs, uniform)[mask].max() > 0.5


def test_without_temperature_the_best_token_follows(toy, logits):
  rollout = make(toy, 4, temperature=0.0)(
    toy.params, PROMPTS, 1, seed=SEED, round=ROUND
  )
  logprobs, mask = log_softmax(logits(rollout)), rollout.sampled_mask
  best = logprobs.max(axis=-1)
  chosen = np.take_along_axis(logprobs, rollout.completions[..., None], -1)
  np.testing.assert_allclose(chosen[..., 0][mask], best[mask], atol=CLOSE)
  np.testing.assert_allclose(rollout.logprobs[mask], best[mask], atol=CLOSE)


def arrays(jaxpr):
  """The abstract values of all results, inner programs included."""
  for equation in jaxpr.eqns:
    yield from (variable.aval for variable in equation.outvars)
    for inner in jax.tree.leaves([*equation.params.values()], is_leaf=programs):
      if programs(inner):
        yield from arrays(getattr(inner, "jaxpr", inner))


def programs(value):
  """True for a jaxpr, closed or not."""
  return hasattr(value, "eqns") or hasattr(value, "jaxpr")


@pytest.mark.parametrize("record_experts", [False, True])
def test_no_array_holds_a_distribution_per_token(toy, record_experts):
  """A step has the logits of one token per slot; reading prompts has none.

  Experts leave no trace unless they are recorded.
  """
  count, size, steps, width = 8, 18, 5, 11
  sampling = make(toy, count).sampling._replace(
    steps=steps, record_experts=record_experts
  )
  cache = jax.eval_shape(lambda: slots.empty(toy.model, count, size))
  prefix = caches.empty(toy.model.config, 1, 1).prefix
  decode = jax.make_jaxpr(functools.partial(slots.decode, toy.model, sampling))(
    toy.params, prefix, cache, slots.to_table(slots.idle_slots(count, steps))
  )
  made = [a for a in arrays(decode.jaxpr) if hasattr(a, "shape")]
  wide = [a.shape for a in made if VOCABULARY in a.shape]
  assert (count, VOCABULARY) in wide
  assert {*wide} == {(count, VOCABULARY), (VOCABULARY,)}
  held = jax.tree.leaves((cache, toy.params))
  largest = max(np.prod(x.shape) for x in held)
  assert max(np.prod(a.shape) for a in made) <= largest
  recorded = any(a.dtype == np.uint8 for a in made)
  assert recorded == record_experts
  prompts = jax.make_jaxpr(
    functools.partial(
      slots.read_prompts, toy.model, record_experts=record_experts
    )
  )(toy.params, prefix, np.zeros((16, width), np.int32))
  made = [a for a in arrays(prompts.jaxpr) if hasattr(a, "shape")]
  assert not [a for a in made if VOCABULARY in a.shape and a.ndim > 2]
