"""Router replay: the trainer's tokens go to the experts that they went to.

Sampler and trainer add numbers in another order, and where two experts are
nearly as good they choose differently: the policies then differ by far more
than rounding. So the sampler records its choice (`make_engine`,
`record_experts`), and `transformer.forward(experts=)` repeats it; what each
expert counts is still up to the trainer's router, which goes on learning.

What is recorded is hundreds of numbers per token, and never leaves the devices.
Sampler and trainer split tokens differently, and completions have any length
and place. In between, therefore, every device holds some of the numbers of all
tokens: then a completion, and later a packed row, is put together on each
device alone, and both changes of the sharding are exchanges of equal parts.

    decode    [B, n, L, k]     slots are split
    record    [F, P, G, Tc]    the F >= L * k numbers of a token are split
    batch     [L, k, B, T]     rows and tokens are split
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Integer

from r1jax.models.config import ModelConfig
from r1jax.parallel import reshard, sharding
from r1jax.types import Ints, Packed, RecordedExperts


def dtype_of(config: ModelConfig) -> np.dtype:
  """The smallest dtype that holds the index of an expert."""
  return np.min_scalar_type(config.experts.num_routed - 1)


def shapes(
  config: ModelConfig, mesh: Mesh, shape: tuple[int, int, int], width: int
) -> RecordedExperts:
  """The shapes of a record on a mesh.

  Args:
    config: of the model.
    mesh: of the sampler.
    shape: [P, G, Tc] of the completions.
    width: Tp, the most tokens of a prompt.
  """
  per_token = config.num_moe_layers, config.experts.per_token
  size = _padded(per_token[0] * per_token[1], mesh)
  on, dtype = _by_number(mesh), dtype_of(config)
  make = lambda *shape: jax.ShapeDtypeStruct((size, *shape), dtype, sharding=on)
  return RecordedExperts(make(*shape), make(shape[0], width), per_token)


def empty(like: RecordedExperts) -> RecordedExperts:
  """A record of no tokens yet, of these `shapes`."""
  return jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), like
  )


def write(
  record: Integer[Array, "F *P T"],
  new: Integer[Array, "B n L k"],
  places: Int[np.ndarray, "3 B"],
) -> Integer[Array, "F *P T"]:
  """One array of a record with the experts of some tokens written.

  Args:
    record: donated.
    new: the experts, split by rows.
    places: the row of the record (its dimensions P flattened) for each of B
      rows, the place there of its first token, and the number of its tokens.
  """
  return _write(record, new, places, record.sharding.mesh)


@functools.partial(
  jax.jit, static_argnames=("mesh",), donate_argnames=("record",)
)
def _write(
  record: Integer[Array, "F *P T"],
  new: Integer[Array, "B n L k"],
  places: Int[Array, "3 B"],
  mesh: Mesh,
) -> Integer[Array, "F *P T"]:
  numbers, split = _numbers_first(new), _by_number(mesh)
  padding = len(record) - len(numbers)
  numbers = jnp.pad(numbers, ((0, padding), (0, 0), (0, 0)))
  by_rows = sharding.spec((None, "rows", None), numbers.shape, mesh)
  numbers = _reshard(numbers, NamedSharding(mesh, by_rows), split)
  rows = record.reshape(len(record), -1, record.shape[-1])
  row, start, count = places[..., None]
  step = jnp.arange(new.shape[1])
  row = jnp.where(step < count, row, rows.shape[1])  # Beyond the last: dropped.
  rows = rows.at[:, row, start + step].set(numbers, mode="drop")
  return jax.lax.with_sharding_constraint(rows.reshape(record.shape), split)


def lay_out(experts: RecordedExperts, packed: Packed, mesh: Mesh) -> Ints:
  """The recorded experts of every slot of packed rows [L, k, B, T].

  A slot whose target is a token of a completion takes those that were recorded
  for this token: they processed the slot's own token. The other slots of a text
  hold its prompt, and take those of the prompt. Unused slots hold 0.

  Args:
    experts: of a rollout, on the same devices in the same order.
    packed: rows that `packing` made of the rollout, on the devices.
    mesh: over which rows and tokens are split.
  """
  return _lay_out(experts, packed.origin, packed.positions, mesh)


@functools.partial(jax.jit, static_argnames=("mesh",))
def _lay_out(
  experts: RecordedExperts,
  origin: Int[Array, "B T"],
  positions: Int[Array, "B T"],
  mesh: Mesh,
) -> Integer[Array, "L k B T"]:
  constrain = jax.lax.with_sharding_constraint
  origin, positions = constrain((origin, positions), sharding.replicated(mesh))
  split = _by_number(mesh)

  def take(record, index):
    numbers = constrain(record, split).reshape(len(record), -1)
    return constrain(jnp.take(numbers, index, axis=1, mode="clip"), split)

  # A prompt stands before its completions, which say whose it is.
  is_sampled, width = origin >= 0, origin.shape[-1]
  slots = jnp.where(is_sampled, jnp.arange(width), width - 1)
  following = jax.lax.cummin(slots, axis=1, reverse=True)
  owner = jnp.take_along_axis(origin, following, axis=1)
  prompt = owner // np.prod(experts.completions.shape[2:])
  in_prompt = prompt * experts.prompts.shape[-1] + positions
  numbers = jnp.where(
    is_sampled,
    take(experts.completions, origin),
    take(experts.prompts, in_prompt),
  )
  numbers = jnp.where(positions >= 0, numbers, 0)
  by_token = sharding.spec((None, "rows", "tokens"), numbers.shape, mesh)
  numbers = _reshard(numbers, split, NamedSharding(mesh, by_token))
  used = numbers[: np.prod(experts.shape)]
  return used.reshape(*experts.shape, *origin.shape)


def join(
  records: Sequence[RecordedExperts], kept: np.ndarray
) -> RecordedExperts:
  """The experts of the `kept` prompts of several rollouts, as one."""
  on = records[0].prompts.sharding
  return jax.jit(_join, out_shardings=on)(records, kept)


def _join(records, kept):
  def one(*arrays):
    widest = max(x.shape[-1] for x in arrays)
    pad = lambda x: [(0, 0)] * (x.ndim - 1) + [(0, widest - x.shape[-1])]
    padded = [jnp.pad(x, pad(x)) for x in arrays]
    return jnp.take(jnp.concatenate(padded, axis=1), kept, axis=1)

  return jax.tree.map(one, *records)


def of_prompt(
  experts: RecordedExperts, prompt: int
) -> tuple[Integer[Array, "G Tc L k"], Integer[Array, "Tp L k"]]:
  """The experts of one group and of its prompt, on every device.

  Every host must call it.
  """
  return _of_prompt(experts, prompt, experts.prompts.sharding.mesh)


@functools.partial(jax.jit, static_argnames=("mesh",))
def _of_prompt(experts, prompt, mesh):
  def one(record):
    numbers = record[: np.prod(experts.shape), prompt]
    by_token = jnp.moveaxis(numbers, 0, -1)
    by_token = by_token.reshape(*by_token.shape[:-1], *experts.shape)
    on = sharding.replicated(mesh)
    return jax.lax.with_sharding_constraint(by_token, on)

  return one(experts.completions), one(experts.prompts)


def from_host(
  completions: Integer[np.ndarray, "P G Tc L k"],
  prompts: Integer[np.ndarray, "P Tp L k"],
) -> RecordedExperts:
  """A record of these experts, still in NumPy; see `to_device`."""
  shape = completions.shape[-2:]
  return RecordedExperts(*map(_numbers_first, (completions, prompts)), shape)


def to_device(
  experts: RecordedExperts | None, mesh: Mesh
) -> RecordedExperts | None:
  """A record of `from_host` on the devices; None if there is none."""

  def one(record):
    padding = _padded(len(record), mesh) - len(record)
    record = np.pad(record, ((0, padding), *[(0, 0)] * (record.ndim - 1)))
    return sharding.to_device(record, _by_number(mesh))

  return jax.tree.map(one, experts)


def _by_number(mesh: Mesh) -> NamedSharding:
  """The sharding of a record; the same on meshes of the same devices."""
  return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


def _padded(size: int, mesh: Mesh) -> int:
  """The least number from `size` on that divides over all devices."""
  return -(-size // mesh.size) * mesh.size


def _numbers_first(experts: Any) -> Any:
  """Experts [*B, L, k] as numbers [L * k, *B]."""
  numbers = experts.reshape(*experts.shape[:-2], -1)
  return numbers.transpose(-1, *range(numbers.ndim - 1))


def _reshard(x: Array, before: NamedSharding, after: NamedSharding) -> Array:
  return reshard.reshard(
    jax.lax.with_sharding_constraint(x, before), before, after
  )
