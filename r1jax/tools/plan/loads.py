"""What depends on data in the programs of a run, declared for a stated load.

The load of experts is one of ROUTINGS. Under "even", all experts receive
equally many tokens. Under "zipf", choices follow Zipf's law with exponent 1: a
token draws k distinct experts, the one of rank r in proportion to 1 / r. Ranks
are shuffled over the devices. All devices wait for the busiest, so its costs
are counted.
"""

import math
from collections.abc import Mapping

import numpy as np

from r1jax import ops
from r1jax.models.config import ModelConfig
from r1jax.ops.grouped import block_rows
from r1jax.parallel import experts as parallel_experts
from r1jax.parallel.mesh import AXIS_RULES
from r1jax.tools.plan.costs import NOTHING, Declared
from r1jax.tools.plan.fill import Fill

EVEN, ZIPF = "even", "zipf"
ROUTINGS = (EVEN, ZIPF)


def nothing(**load) -> Declared:
  """Declares that nothing depends on data, whatever the load."""
  return NOTHING


def choices_per_token(routing: str, experts: int, k: int) -> np.ndarray:
  """How many of a token's k choices each of the experts receives, [E].

  Raises ValueError for an unknown routing.
  """
  if routing == EVEN:
    return np.full(experts, k / experts)
  if routing != ZIPF:
    raise ValueError(f"routing {routing!r} is none of {', '.join(ROUTINGS)}")
  if k == experts:
    return np.ones(experts)
  ranks = np.random.default_rng(0).permutation(experts) + 1
  # In continuous time, expert r comes at the rate 1 / r. Within the time in
  # which k experts come on average, it has come with this probability.
  reached = lambda time: 1 - np.exp(-time / ranks)
  low, high = 0.0, 1.0
  while reached(high).sum() < k:
    high *= 2
  for _ in range(60):
    middle = (low + high) / 2
    low, high = (middle, high) if reached(middle).sum() < k else (low, middle)
  return reached(high)


def of_experts(
  sizes: ModelConfig,
  mesh: Mapping[str, int],
  tokens: int,
  routing: str = EVEN,
) -> Declared:
  """What routed experts make depend on data, on the busiest device.

  Args:
    sizes: of a model; without experts, nothing is declared.
    mesh: sizes of its axes.
    tokens: of one device.
    routing: the load of the experts.
  """
  e = sizes.experts
  if e is None:
    return NOTHING
  shards = mesh.get(parallel_experts.AXIS, 1)
  local, chunk = e.num_routed // shards, min(tokens, sizes.moe_chunk)
  load = choices_per_token(routing, e.num_routed, e.per_token)
  by_device = chunk * shards * load.reshape(shards, local)
  rows = by_device[by_device.sum(axis=1).argmax()]  # Of each local expert.
  # See `parallel.experts`: buffers hold a window, or all choices there can be.
  most = chunk * shards * min(e.per_token, local)
  window = math.ceil(parallel_experts.SLACK * chunk * e.per_token)
  windows = math.ceil(rows.sum() / window - 1e-6) if window < most else 1
  buffer = min(window, most)
  blocks = np.ceil(rows / block_rows(buffer, local)).sum()
  return Declared(
    trips={"experts": (windows,), ops.grouped.SCOPE: (blocks / windows,)},
    work={ops.grouped.SCOPE: rows.sum() / (windows * buffer)},
  )


def of_pass(
  shape: tuple[int, int],
  sizes: ModelConfig,
  mesh: Mapping[str, int],
  fill: Fill | None = None,
  routing: str = EVEN,
) -> Declared:
  """What depends on data in a pass over whole rows.

  Attention loops over blocks of keys, and inside over blocks of queries that
  see them. If every row is one text, the counts are those of the device with
  the last tokens of a row, which sees the most keys. With a simulation, they
  are means over devices, and those of texts that begin where blocks do. Blocks
  that do not see each other are not among them.

  Args:
    shape: the number of rows, and their width.
    sizes: of the model.
    mesh: sizes of its axes.
    fill: of simulated rows.
    routing: the load of the experts.
  """
  (rows, width), context = shape, mesh["context"]
  block = min(ops.attention.LONG_BLOCK, width // context)
  keys = -(-width // block)
  queries = -(-width // context // block)
  pairs = queries * (keys - queries) + queries * (queries + 1) / 2
  if fill and width in fill.pairs:
    seen = fill.pairs[width] / context / block**2 + queries / 2
    pairs = min(pairs, seen)
  chunk = min(4096, ops.logprobs.LOGITS // sizes.vocab_size)
  columns = min(max(1, chunk), ops.logprobs.COLUMNS, width)
  tokens = -(-rows // _row_shards(mesh)) * -(-width // context)
  routed = of_experts(sizes, mesh, tokens, routing)
  return routed._replace(
    trips={
      **routed.trips,
      "logprobs": (-(-width // context // columns),),
      "attention": (keys, pairs / keys),
    },
    branches={"attention": (0, 1)},
  )


def of_decoding(
  steps: int,
  slots: int,
  sizes: ModelConfig,
  mesh: Mapping[str, int],
  fill: Fill | None = None,
  routing: str = EVEN,
) -> Declared:
  """What depends on data in `steps` of decoding with all slots in use.

  `fill` has no effect, as slots are not simulated; for the rest, see `of_pass`.
  """
  del fill
  tokens = -(-slots // _row_shards(mesh))
  routed = of_experts(sizes, mesh, tokens, routing)
  return routed._replace(trips={**routed.trips, "decoding": (steps,)})


def _row_shards(mesh: Mapping[str, int]) -> int:
  return math.prod(mesh[axis] for axis in AXIS_RULES["rows"])
