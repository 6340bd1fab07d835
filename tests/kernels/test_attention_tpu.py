"""The kernel for attention, compiled for TPUs that are not there."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from r1jax_kernels import attention as kernel

from r1jax import ops
from r1jax.parallel import context, sharding
from r1jax.parallel.mesh import make_mesh
from r1jax.tools.plan import (
  chips as plan_chips,
)
from r1jax.tools.plan import (
  command,  # noqa: F401  It sets the environment of libtpu.
)

pytest.importorskip("libtpu", reason="libtpu is not installed: `make test-tpu`")
pytestmark = pytest.mark.tpu

# The smallest of each chip.
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
MODELS = {  # K, G, H and Hv.
  "DeepSeek-V3": (128, 1, 192, 128),
  "Qwen2-7B": (4, 7, 128, 128),
}
NAMES = ["attention_forward", "attention_d_queries", "attention_d_keys_values"]


@functools.cache
def device(chip):
  return plan_chips.devices(plan_chips.topology(TOPOLOGIES[chip]))[0]


def compiled(chip, fn, *arguments):
  """The program of a function on one chip, from shapes and dtypes."""
  sharding = jax.sharding.SingleDeviceSharding(device(chip))
  shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  return jax.jit(fn).lower(*jax.tree.map(shape, arguments)).compile()


def arguments(tokens, sizes, dtype=jnp.bfloat16):
  """The shapes of queries, keys, values and limits of one row."""
  K, G, H, Hv = sizes
  array = lambda *shape: jax.ShapeDtypeStruct((1, tokens, *shape), dtype)
  limits = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
  return array(K, G, H), array(K, H), array(K, Hv), limits, limits


def gradient(op, *arrays):
  """The gradients of arrays, of the sum of both results of attention."""
  *arrays, k_start, prefix_end = arrays

  def loss(*arrays):
    out, lse = op(*arrays, k_start=k_start, prefix_end=prefix_end, scale=0.1)
    return jnp.sum(out.astype(jnp.float32)) + jnp.sum(lse)

  return jax.grad(loss, argnums=tuple(range(len(arrays))))(*arrays)


def kernels(program):
  """The name, FLOPs and bytes of vector memory of each kernel of a program."""
  calls = [
    line
    for line in program.as_text().splitlines()
    if 'custom_call_target="tpu_custom_call"' in line
  ]
  number = lambda pattern, line: int(
    re.search(pattern + r'\D*"(\d+)"', line)[1]
  )
  used = r'"used_scoped_memory_configs":\[\{"memory_space":"1".*?"size":'
  return {
    re.search("|".join(NAMES), line)[0]: (
      number('"flops":', line),
      number(used, line),
    )
    for line in calls
  }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("chip", TOPOLOGIES)
def test_the_kernels_compile_alone(chip, model):
  """At full width, in rows of 8,192 tokens; `-rP` prints the vector memory."""
  op = functools.partial(gradient, kernel.packed_attention)
  shapes = arguments(8192, MODELS[model])
  program = compiled(chip, op, *shapes)
  found = kernels(program)
  assert sorted(found) == sorted(NAMES)
  K, G, H, Hv = MODELS[model]
  scores = K * G * 36 * 1024**2  # 8 x 9 / 2 pairs of blocks.
  depths = (H + Hv, 2 * H + Hv, 2 * H + 2 * Hv)
  for name, depth in zip(NAMES, depths):
    flops, memory = found[name]
    print(f"{chip} {model} {name}: {memory / 2**20:.1f} MiB of vector memory")
    assert flops == 2 * scores * depth
    assert memory < kernel.VMEM / 2
  # XLA counts the kernels by their estimates, and little else.
  total = 2 * scores * sum(depths)
  assert total <= program.cost_analysis()["flops"] < 1.01 * total


def test_float32_rows_of_any_length_compile():
  op = functools.partial(gradient, kernel.packed_attention)
  shapes = arguments(1337, (2, 2, 192, 128), jnp.float32)
  assert sorted(kernels(compiled("v5e", op, *shapes))) == sorted(NAMES)


@pytest.mark.parametrize("tokens, used", [(2048, True), (512, False)])
def test_long_rows_of_grouped_queries_use_the_kernels(tokens, used):
  op = functools.partial(gradient, ops.packed_attention)
  shapes = arguments(tokens, (2, 2, 64, 64))
  assert bool(kernels(compiled("v5p", op, *shapes))) == used


def test_long_rows_of_latents_use_the_kernels_for_a_few_heads_at_a_time():
  """Keys and values of all 128 heads would take 5 GiB."""
  tokens, heads = 32_768, 128
  array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  limits = jax.ShapeDtypeStruct((1, tokens), jnp.int32)
  program = compiled(
    "v5p",
    functools.partial(gradient, ops.latent_attention),
    array(1, tokens, heads, 192),
    array(1, tokens, 576),
    array(512, heads, 256),
    limits,
    limits,
  )
  assert sorted(kernels(program)) == sorted(NAMES)


def test_rows_split_over_a_mesh_use_the_kernels_on_each_device():
  """Half of the queries, all of the keys, and half of the heads."""
  devices = plan_chips.devices(plan_chips.topology("v5p:2x2x1"))
  mesh = make_mesh(data=1, context=2, tensor=2, devices=devices)

  def array(names, *shape, dtype=jnp.bfloat16):
    split = jax.NamedSharding(mesh, sharding.spec(names, shape, mesh))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

  limits = array(("rows", "tokens"), 2, 4096, dtype=jnp.int32)
  arrays = (
    array(("rows", "tokens", "heads", None), 2, 4096, 8, 192),
    array(("rows", "tokens", None), 2, 4096, 576),
    array((None, "heads", None), 512, 8, 256),
  )

  def op(*arrays, **options):
    return context.latent_attention(*arrays, **options), jnp.zeros(())

  with jax.set_mesh(mesh):
    lowered = jax.jit(functools.partial(gradient, op)).lower(
      *arrays, limits, limits
    )
    program = lowered.compile()
  found = kernels(program)
  assert sorted(found) == sorted(NAMES)
  # Two rows, four heads, two blocks of queries: the last sees four of keys.
  assert found[NAMES[0]][0] == 2 * 2 * 4 * (3 + 4) * 1024**2 * (192 + 128)
