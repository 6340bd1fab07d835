"""Eight devices on the data axis say what one says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from r1jax.losses.advantages import advantages
from r1jax.losses.aggregation import token_weights
from r1jax.losses.presets import PRESETS
from r1jax.models import transformer
from r1jax.models.config import replace
from r1jax.models.presets import preset
from r1jax.parallel import sharding
from r1jax.parallel.mesh import make_mesh
from r1jax.training import policy
from r1jax.training.batch import add_advantages, make_batch, pack_prompts
from r1jax.training.update import init_state, make_update
from r1jax.types import Rollout, within_lengths

P, G, T = 4, 4, 6
RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(1, T + 1, (P, G)).astype(np.int32)
ROLLOUT = Rollout(
  prompts=RNG.integers(0, 37, (P, 5)).astype(np.int32),
  prompt_lengths=np.array([5, 3, 1, 4], np.int32),
  completions=RNG.integers(0, 37, (P, G, T)).astype(np.int32),
  lengths=LENGTHS,
  finish=np.ones((P, G), np.int32),
  sampled_mask=within_lengths(LENGTHS, T),
  logprobs=RNG.uniform(-5, -3, (P, G, T)).astype(np.float32),
)
MODELS = {
  "moe": dict(num_layers=1, experts=dict(num_dense_layers=0), mtp_depth=0),
  "dense": dict(num_layers=1),
}


@pytest.fixture(
  scope="module",
  params=["moe", pytest.param("dense", marks=pytest.mark.soak)],
)
def toy_model(request, random_params):
  name = "tiny_deepseek" if request.param == "moe" else "tiny_qwen2"
  config = replace(
    preset(name), vocab_size=40, width=16, **MODELS[request.param]
  )
  return transformer.Transformer(config), random_params(config)


def run(toy_model, recipe: str, devices: int):
  """The gradient and the metrics of one update over so many devices."""
  model, params = toy_model
  settings, mesh = PRESETS[recipe], make_mesh(data=devices)
  aggregation = settings["aggregation"]
  if aggregation["name"] == "constant":
    aggregation = aggregation | dict(divisor=T)
  rewards = np.arange(P * G).reshape(P, G) % 3 * 1.0
  placements = pack_prompts(
    ROLLOUT, range(P), mesh, widths=(24, 12), shard_rows=8 // devices
  )
  loss = functools.partial(
    policy.policy_loss,
    functools.partial(policy.policy_forward, model, 37, 0.9),
    None,
    P * G,
    **settings["loss"] | dict(kl_coefficient=0.1),
  )
  optimizer = optax.sgd(1.0)
  state = init_state(jax.tree.map(jnp.asarray, params), optimizer)
  weights = token_weights(LENGTHS, np.ones((P, G), bool), **aggregation)
  batches = []
  for placement in placements:
    batch = make_batch(ROLLOUT, placement, mesh)
    batch = add_advantages(
      batch.replace(reference_logprobs=batch.sampler_logprobs - 0.1),
      advantages(rewards, **settings["advantage"]).reshape(-1),
      weights.reshape(-1),
      np.int32(LENGTHS.sum()),
    )
    batches.append(batch)
  new, metrics = make_update(loss, optimizer)(
    sharding.replicate(mesh, state), batches
  )
  assert len(new.params["embed"].sharding.device_set) == devices
  gradient = jax.tree.map(lambda a, b: np.asarray(a) - b, new.params, params)
  return gradient, jax.device_get(metrics)


@pytest.mark.slow
def test_any_number_of_devices_gives_the_same_update(toy_model, recipe):
  one, two, eight = (run(toy_model, recipe, n) for n in (1, 2, 8))
  assert one[1]["optim/grad_norm"] > 0.01
  for other in (two, eight):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-6),
      other,
      one,
    )


MANY = """
import types

import flax
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from r1jax.parallel.mesh import make_mesh
from r1jax.training import policy


@flax.struct.dataclass
class Microbatch:
  x: jax.Array
  old_logprobs: jax.Array | None = None


place = lambda x, *axes: jax.device_put(
  x, NamedSharding(make_mesh(data=2), PartitionSpec(*axes))
)
score = jax.jit(lambda w, batch: w * (batch.x @ batch.x.T).sum())
state = types.SimpleNamespace(
  train=types.SimpleNamespace(params=place(jnp.ones(()))), reference=None
)
batches = [Microbatch(place(jnp.ones((512, 512)), "data"))] * 100
for _ in range(3):
  ((last, *_),) = policy.add_logprobs(score, [batches], state, old="trainer")
print(float(last.old_logprobs))
"""


@pytest.mark.slow
def test_two_cores_score_any_number_of_microbatches(python):
  """Dispatched all at once, they would wait for each other for ever."""
  done = python("-c", MANY, env=dict(JAX_NUM_CPU_DEVICES="2", NPROC="2"))
  assert float(done.stdout) == 512.0**3, done.stderr
