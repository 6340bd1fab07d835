"""The state of a run: restored from its newest checkpoint, or made anew."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import ml_collections
from jax.sharding import Mesh

from r1jax import data, hf
from r1jax.parallel import offload, sharding
from r1jax.rewards.judges import learned
from r1jax.runtime import checkpoint
from r1jax.training.lora import NOTHING, Frozen
from r1jax.training.models import Initial
from r1jax.types import Example, Params, RLState, TrainState

State = TypeVar("State", TrainState, RLState)


def restore_or_init(
  workdir: str,
  mesh: Mesh,
  initial: Initial,
  init: Callable[[Params], State],
  offloaded: Sequence[str],
) -> tuple[State, int | None]:
  """The state and step of the newest checkpoint, or a new state and None.

  Only one state is made, in the shards and the memory where it stays. The
  initial parameters are not read if there is a checkpoint.

  Args:
    workdir: of the run.
    mesh: of the run.
    initial: the model that the run starts from.
    init: the state for initial parameters; it is compiled.
    offloaded: the parts that stay in host memory; see `offload`.

  Raises ValueError for a checkpoint of another model; see
  `checkpoint.restore`.
  """
  shapes = sharding.eval_shape(mesh, initial.axes, init, initial.shapes)
  shapes = offload.to_host(shapes, offloaded)
  state = checkpoint.restore(workdir, shapes)
  step = None
  if state is None:
    params = make_params(mesh, initial)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    with jax.set_mesh(mesh):
      make = jax.jit(init, out_shardings=shardings, donate_argnums=0)
      state = make(params)
  else:
    step = int(state.train.step if isinstance(state, RLState) else state.step)
  checkpoint.drop_scores(workdir, step)
  return state, step


def make_params(mesh: Mesh, initial: Initial) -> Params:
  """The parameters of a model, read or made in the shards of the mesh."""
  shardings = sharding.tree_shardings(mesh, initial.axes, initial.shapes)
  with jax.set_mesh(mesh):
    return initial.make(shardings)


def make_frozen(mesh: Mesh, initial: Initial) -> Frozen:
  """The model of an adapter, read in the shards of the mesh, if it is one."""
  if initial.base is None:
    return NOTHING
  return Frozen(initial.adapter, make_params(mesh, initial.base))


def contents(
  config: ml_collections.ConfigDict, dataset: Sequence[Example]
) -> dict[str, str]:
  """Checksums of what the config names by path, by section.

  A resumed run may find it under another path.
  """
  names = ("model", "tokenizer", "teacher")
  paths = {name: (config.get(name) or {}).get("path") for name in names}
  for path in learned.paths_of(config.to_dict().get("rewards") or {}):
    paths[f"reward model {path}"] = path
  checksums = {k: hf.content_hash(path) for k, path in paths.items() if path}
  return {"dataset": data.content_hash(dataset)} | checksums
