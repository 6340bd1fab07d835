"""The way from one mesh to another of the same devices."""

import jax
import numpy as np
import pytest

from r1jax.parallel import reshard, sharding
from r1jax.parallel.mesh import make_mesh
from r1jax.tools.plan import costs, hlo

NAMES = ("layers", "expert", "width", "hidden")
USED = ("layers", "expert", None, "hidden")
SHAPE = (2, 8, 16, 4)


def shardings(before, after):
  meshes = [make_mesh(**sizes) for sizes in (before, after)]
  return [
    jax.NamedSharding(mesh, sharding.spec(names, SHAPE, mesh))
    for mesh, names in zip(meshes, (NAMES, USED))
  ]


@pytest.mark.parametrize(
  "before, after",
  [
    (dict(fsdp=4, expert=2), dict(data=2, expert=4)),
    (dict(fsdp=4, expert=2), dict(expert=8)),
    (dict(fsdp=8), dict(data=4, tensor=2)),
    (dict(data=2, expert=2, tensor=2), dict(expert=8)),
    (dict(expert=8), dict(data=8)),
    (dict(fsdp=2, expert=2, context=2), dict(data=1, expert=4, tensor=2)),
  ],
)
def test_an_array_arrives_without_a_copy_of_it_on_every_device(before, after):
  before, after = shardings(before, after)
  x = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
  move = jax.jit(lambda x: reshard.reshard(x, before, after))
  placed = jax.device_put(x, before)
  moved = move(placed)
  assert moved.sharding.is_equivalent_to(after, x.ndim)
  np.testing.assert_array_equal(moved, x)
  # A device gets no more than it keeps, and that of other steps.
  module = hlo.parse(move.lower(placed).compile().as_text())
  kept = x.nbytes / (x.size / np.prod(after.shard_shape(SHAPE)))
  for one in costs.count(module).collectives:
    assert one.received(8) <= kept, one


def test_meshes_without_common_parts_are_no_obstacle():
  devices = jax.devices()[:6]
  two, three = (
    make_mesh(**sizes, devices=devices)
    for sizes in (dict(fsdp=2, expert=3), dict(fsdp=3, expert=2))
  )
  assert reshard.common_mesh(two, three) is None
  x = np.arange(6 * 6.0).reshape(6, 6)
  lies = [
    jax.NamedSharding(mesh, jax.P(*spec))
    for mesh, spec in ((two, ("fsdp", "expert")), (three, ("expert", "fsdp")))
  ]
  moved = jax.jit(lambda x: reshard.reshard(x, *lies))(
    jax.device_put(x, lies[0])
  )
  np.testing.assert_array_equal(moved, x)
