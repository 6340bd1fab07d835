"""No array of a round is as large as tokens times vocabulary, or tokens
squared: in the programs as XLA compiled them."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from r1jax import ops
from r1jax.losses.presets import PRESETS
from r1jax.models import transformer
from r1jax.models.config import replace
from r1jax.models.presets import preset
from r1jax.training import policy
from r1jax.training.update import make_update
from r1jax.types import Batch, Packed

ROWS, T, V = 2, 4096, 50_000
PARTS = dict(vocab_size=V, width=16, num_layers=2)
CONFIGS = {
  "deepseek": replace(
    preset("tiny_deepseek"), **PARTS, mtp_depth=0, max_length=T
  ),
  "qwen2": replace(preset("tiny_qwen2"), **PARTS, max_length=T),
}


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def model(request):
  return transformer.Transformer(CONFIGS[request.param])


def shapes(function, *args) -> set[tuple[int, ...]]:
  """Of every array in the compiled program."""
  text = jax.jit(function).lower(*args).compile().as_text()
  found = re.findall(r"\b(?:f32|bf16|s32|u32|pred)\[([\d,]+)\]", text)
  return {tuple(map(int, dims.split(","))) for dims in found}


def check(found):
  assert max(map(math.prod, found)) > ROWS * T  # There is something to see.
  for shape in found:
    assert sum(size >= T for size in shape) < 2, shape
    if V in shape:
      assert math.prod(shape) <= max(ops.logprobs.LOGITS, 16 * V), shape
    assert math.prod(shape) < ROWS * T * T, shape


def abstract(shape, dtype=jnp.int32):
  return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.slow
def test_scoring_and_updating(model):
  params = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
  forward = functools.partial(policy.policy_forward, model, V, 1.0)
  tokens = abstract((ROWS, T))
  values = abstract((ROWS, T), jnp.float32)
  batch = Batch(
    packed=Packed(**dict.fromkeys(Packed.__dataclass_fields__, tokens)),
    weights=values,
    num_targets=abstract(()),
    completions=tokens,
    advantages=values,
    sampler_logprobs=values,
    old_logprobs=values,
    reference_logprobs=values,
  )
  check(shapes(policy.make_score(forward), params, batch))

  loss = functools.partial(
    policy.policy_loss, forward, None, 64, **PRESETS["gspo"]["loss"]
  )
  update = make_update(loss, optax.sgd(1.0))
  check(shapes(update.add, params, params, batch))


def test_the_naive_form_would_be_noticed():
  hidden, unembed = jnp.zeros((ROWS * T, 16)), jnp.zeros((16, V))
  found = shapes(lambda h, w: jax.nn.log_softmax(h @ w).sum(), hidden, unembed)
  with pytest.raises(AssertionError):
    check(found)
