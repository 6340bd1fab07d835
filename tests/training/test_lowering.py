"""The whole of R1, 671 billion parameters, becomes a program for TPUs.

Nothing is allocated: shapes go in, a module comes out. Where libtpu is not
installed that is as far as a CPU goes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.presets import PRESETS
from r1jax.models import cache as caches
from r1jax.models import transformer
from r1jax.models.presets import preset
from r1jax.training import policy
from r1jax.training.optimizer import make_optimizer
from r1jax.training.update import make_update
from r1jax.types import Batch, Packed

CONFIG = preset("deepseek_v3", compute_dtype="bfloat16")
MODEL = transformer.Transformer(CONFIG)
OPTIMIZER = dict(
  learning_rate=3e-6,
  weight_decay=0.1,
  frozen=("mtp",),
)


def lower(function, *args):
  """The module for TPUs, as text."""
  lowered = function.trace(*args).lower(lowering_platforms=("tpu",))
  return lowered.as_text()


@pytest.fixture(scope="module")
def params():
  return jax.eval_shape(lambda: transformer.init(MODEL, jax.random.key(0)))


@pytest.mark.slow
def test_a_grpo_update_lowers(params):
  optimizer = make_optimizer(**OPTIMIZER)
  forward = functools.partial(policy.policy_forward, MODEL, 129_280, 1.0)
  loss = functools.partial(
    policy.policy_loss, forward, None, 8192, **PRESETS["r1"]["loss"]
  )
  update = make_update(loss, optimizer)
  tokens, values = (
    jax.ShapeDtypeStruct((2, 4096), kind) for kind in (jnp.int32, jnp.float32)
  )
  batch = Batch(
    packed=Packed(**dict.fromkeys(Packed.__dataclass_fields__, tokens)),
    weights=values,
    completions=tokens,
    advantages=values,
    sampler_logprobs=values,
    old_logprobs=values,
    reference_logprobs=values,
  )
  text = lower(update.add, params, params, batch)
  assert "58x256x7168x2x2048" in text  # The experts of all layers, stacked.
  assert "grouped_weight_gradient" in text  # TPUs take the kernels.


@pytest.mark.slow
def test_a_decode_step_lowers(params):
  cache = jax.eval_shape(lambda: caches.empty(CONFIG, 64, 2048))
  assert jax.tree.leaves(cache.rows)[0].shape == (61, 64, 1, 576, 2048)
  step = jax.jit(functools.partial(transformer.extend, MODEL))
  tokens = jax.ShapeDtypeStruct((64, 1), np.int32)
  assert "58x256x7168x2x2048" in lower(step, params, tokens, cache)
