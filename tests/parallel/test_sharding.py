"""What crosses the host boundary comes back as it was."""

import dataclasses
import os
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from r1jax.parallel import sharding
from r1jax.parallel.mesh import make_mesh, reshape_mesh, row_shards

BATCH = {"tokens": np.arange(24, dtype=np.int32).reshape(8, 3)}


def test_assemble_and_local_are_inverse():
  mesh = make_mesh()
  placed = sharding.rows_to_device(mesh, BATCH)
  assert isinstance(placed["tokens"], jax.Array)
  np.testing.assert_array_equal(
    sharding.to_host(placed)["tokens"], BATCH["tokens"]
  )


def test_what_crosses_is_copied():
  batch = {"x": np.ones((64, 64), np.float32)}
  placed = sharding.rows_to_device(make_mesh(), batch)
  batch["x"][:] = 2
  assert float(placed["x"].sum()) == 64 * 64
  back = sharding.to_host(placed)
  back["x"][:] = 3
  assert float(placed["x"].sum()) == 64 * 64


def test_local_survives_donation():
  mesh = make_mesh()
  placed = sharding.replicate(mesh, {"x": np.ones((64, 64), np.float32)})
  back = sharding.to_host(placed)
  step = jax.jit(lambda t: jax.tree.map(lambda x: x * 5, t), donate_argnums=0)
  jax.block_until_ready(step(placed))
  assert back["x"].max() == 1


def test_local_keeps_scalars_and_host_values():
  tree = {"loss": jnp.float32(2.5), "n": 3, "none": None}
  back = sharding.to_host(tree)
  assert back["loss"] == 2.5
  assert back["loss"].shape == ()
  assert back["n"] == 3
  assert back["none"] is None


def test_a_mesh_beyond_the_devices_is_refused():
  with pytest.raises(
    ValueError, match=r"mesh\.data is 4096.*set mesh.data to -1"
  ):
    make_mesh(data=4096)
  with pytest.raises(ValueError, match=r"mesh\.data is 0"):
    make_mesh(data=0)


def test_data_takes_what_other_axes_leave():
  mesh = make_mesh(fsdp=2, tensor=2)
  assert tuple(mesh.shape.items()) == (
    ("data", 2),
    ("fsdp", 2),
    ("expert", 1),
    ("context", 1),
    ("tensor", 2),
  )
  assert row_shards(mesh) == 4


@pytest.mark.parametrize(
  "sizes, message",
  [
    (dict(tensor=3), "tensor 3 does not divide the 8 devices"),
    (dict(data=4, fsdp=4), "data 4, fsdp 4 takes 16 devices, but there are 8"),
    (dict(fsdp=0), r"mesh\.fsdp is 0; an axis that is not used has size 1"),
    (dict(tensor=-1), r"mesh\.tensor is -1"),
    (dict(num_slices=0), "num_slices is 0, but .* belong to 1 "),
    (dict(num_slices=2), "num_slices is 2, but .* belong to 1 "),
  ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(sizes, message):
  with pytest.raises(ValueError, match=message):
    make_mesh(**sizes)


@dataclasses.dataclass(frozen=True)
class Chip:
  """As much of a device as the order of devices depends on."""

  id: int
  slice_index: int
  process_index: int = 0
  platform: str = "tpu"
  device_kind: str = "TPU v5"
  core_on_chip: int = 0

  @property
  def coords(self):
    return self.id % 2, self.id // 2 % 4, 0


def test_only_the_data_axis_crosses_slices():
  chips = [Chip(i, i // 8) for i in range(16)]
  mesh = make_mesh(fsdp=2, tensor=2, num_slices=2, devices=chips)
  slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
  assert mesh.shape["data"] == 4
  np.testing.assert_array_equal(slices[:2], 0)
  np.testing.assert_array_equal(slices[2:], 1)
  detected = make_mesh(fsdp=2, tensor=2, devices=chips)
  assert (detected.devices == mesh.devices).all()
  with pytest.raises(
    ValueError, match="num_slices is 1, .* belong to 2 slices"
  ):
    make_mesh(num_slices=1, devices=chips)
  with pytest.raises(
    ValueError, match="num_slices 2 does not divide mesh.data"
  ):
    make_mesh(fsdp=16, devices=chips)


def test_any_axis_crosses_hosts_of_gpus():
  gpus = [Chip(i, i // 8, i // 8, "gpu", "H200") for i in range(16)]
  mesh = make_mesh(fsdp=16, devices=gpus)
  assert mesh.devices.ravel().tolist() == gpus
  mesh = make_mesh(fsdp=8, num_slices=2, devices=gpus)
  assert [d.process_index for d in mesh.devices.ravel()] == [0] * 8 + [1] * 8
  # A sampler may split its weights over hosts, too.
  assert reshape_mesh(make_mesh(fsdp=16, devices=gpus), tensor=16).size == 16


def test_a_slice_of_other_devices_is_several_hosts_that_follow_each_other():
  """Whatever machines they are on."""
  cores = [Chip(i, i // 4 % 3, i // 2, "cpu", "cpu") for i in range(16)]
  mesh = make_mesh(fsdp=2, tensor=2, num_slices=2, devices=cores[::-1])
  hosts = np.vectorize(lambda core: core.process_index)(mesh.devices)
  assert mesh.shape["data"] == 4
  assert {*hosts[:2].flat} == {0, 1, 2, 3}
  assert {*hosts[2:].flat} == {4, 5, 6, 7}
  with pytest.raises(ValueError, match="num_slices 4 does not divide mesh.dat"):
    make_mesh(fsdp=8, num_slices=4, devices=cores)
  with pytest.raises(ValueError, match="is 16, .* belong to 8 hosts"):
    make_mesh(num_slices=16, devices=cores)
  with pytest.raises(ValueError, match="is 3, .* belong to 8 hosts"):
    make_mesh(num_slices=3, devices=cores)


def test_another_mesh_of_the_same_devices_keeps_their_order():
  mesh = make_mesh(fsdp=4, tensor=2)
  other = reshape_mesh(mesh, data=4, tensor=2)
  assert list(other.devices.flat) == list(mesh.devices.flat)
  assert other.shape["data"] == 4
  with pytest.raises(
    ValueError, match="has 4 devices, but the mesh it reshapes has 8"
  ):
    reshape_mesh(mesh, data=4)


AXES_OF = {  # By hand, from the table.
  (("expert", "width", "hidden"), (8, 8, 8)): P("expert", "fsdp", "tensor"),
  (("width", "hidden"), (8, 8)): P(("fsdp", "expert"), "tensor"),
  (("width", "hidden"), (2, 3)): P("fsdp", None),
  (("width", None), (8, 8)): P(("fsdp", "expert", "tensor"), None),
  (("width", "hidden"), (3, 2)): P(None, "tensor"),
  (("expert", "width", "hidden"), (3, 4, 8)): P(
    None, ("fsdp", "expert"), "tensor"
  ),
  (("width", "hidden"), (8, 3)): P(("fsdp", "expert", "tensor"), None),
  (("layers", None, "heads"), (8, 8, 8)): P(None, None, "tensor"),
  (("rows", "tokens", None), (8, 8, 8)): P(("fsdp", "expert"), None, None),
  (("rows", "kv_heads"), (1, 1)): P(None, None),
}


@pytest.mark.parametrize("names, shape", AXES_OF)
def test_the_table_says_what_is_split(names, shape):
  mesh = make_mesh(fsdp=2, expert=2, tensor=2)
  assert sharding.spec(names, shape, mesh) == AXES_OF[names, shape]


def test_an_axis_that_does_not_divide_leaves_its_place_to_the_next():
  mesh = make_mesh(data=4, fsdp=2)
  assert sharding.spec(("rows",), (6,), mesh) == P("fsdp")


def test_what_belongs_to_a_parameter_lies_as_it_does():
  mesh = make_mesh(fsdp=4, tensor=2)
  params = {"norm": np.ones(8), "block": {"up": np.ones((3, 8, 6))}}
  axes = {
    "norm": ("width",),
    "block": {"up": ("layers", "width", "hidden")},
  }
  optimizer = optax.multi_transform(
    {"trained": optax.chain(optax.clip(1.0), optax.adamw(1e-3))},
    lambda params: jax.tree.map(lambda _: "trained", params),
  )
  tree = (params, jax.eval_shape(optimizer.init, params))
  found = jax.tree.leaves_with_path(sharding.tree_shardings(mesh, axes, tree))
  by_name = {}
  for path, of in found:
    by_name.setdefault(jax.tree_util.keystr(path[-1:]), []).append(of.spec)
  assert by_name.pop("['norm']") == [P(("fsdp", "tensor"))] * 3
  assert by_name.pop("['up']") == [P(None, "fsdp", "tensor")] * 3
  assert all(of == [P()] * len(of) for of in by_name.values())
  with pytest.raises(ValueError, match=r"'other'.*belongs to no parameter"):
    sharding.tree_shardings(mesh, axes, {"other": np.ones(3)})


def test_what_is_placed_is_split_and_comes_back():
  mesh = make_mesh(fsdp=4, tensor=2)
  x = np.arange(48.0, dtype=np.float32).reshape(8, 6)
  of = sharding.tree_shardings(mesh, {"x": ("width", "hidden")}, {"x": x})
  placed = sharding.to_device({"x": x}, of)["x"]
  assert {s.data.shape for s in placed.addressable_shards} == {(2, 3)}
  np.testing.assert_array_equal(sharding.to_host(placed), x)
  again = sharding.to_device({"x": placed}, of)["x"]
  np.testing.assert_array_equal(sharding.to_host(again), x)


def test_a_constraint_binds_only_where_there_is_a_mesh():
  x = jnp.zeros((8, 4))
  assert sharding.shard_constraint(x, "rows", "hidden") is x
  with jax.set_mesh(make_mesh(data=1)):
    assert sharding.shard_constraint(x, "rows", "hidden") is x
  mesh = make_mesh(fsdp=4, tensor=2)
  with jax.set_mesh(mesh):
    y = jax.jit(lambda x: sharding.shard_constraint(x + 1, "rows", "hidden"))(x)
    assert y.sharding.spec == P("fsdp", "tensor")
    by_hand = jax.shard_map(
      lambda x: sharding.shard_constraint(x, "rows", "hidden"),
      mesh=mesh,
      in_specs=P("fsdp", "tensor"),
      out_specs=P("fsdp", "tensor"),
    )
    np.testing.assert_array_equal(jax.jit(by_hand)(y), y)


def test_rows_are_split_over_all_that_split_rows():
  mesh = make_mesh(data=2, fsdp=2, expert=2)
  placed = sharding.rows_to_device(mesh, BATCH)["tokens"]
  assert {s.data.shape for s in placed.addressable_shards} == {(1, 3)}
  np.testing.assert_array_equal(sharding.to_host(placed), BATCH["tokens"])


def test_scalars_have_no_rows():
  with pytest.raises(ValueError, match="no rows do not divide"):
    sharding.rows_to_device(make_mesh(), {"x": np.float32(1)})


EIGHT = """
  import jax, numpy as np
  from r1jax.parallel import sharding
  from r1jax.parallel.mesh import make_mesh
  mesh = make_mesh()
  assert mesh.shape["data"] == mesh.size == 8, mesh.shape
  x = np.arange(48, dtype=np.float32).reshape(16, 3)
  placed = sharding.rows_to_device(mesh, {"x": x})["x"]
  assert [s.data.shape for s in placed.addressable_shards] == [(2, 3)] * 8
  total = jax.jit(lambda x: x.sum(0))(placed)
  np.testing.assert_allclose(sharding.to_host(total), x.sum(0))
  np.testing.assert_array_equal(sharding.to_host(placed), x)
  doubled = jax.jit(lambda x: 2 * x)(placed)
  assert doubled.sharding.is_equivalent_to(sharding.by_rows(mesh), 2)
  w = sharding.replicate(mesh, {"w": x})["w"]
  assert len(w.addressable_shards) == 8 and w.is_fully_replicated
  np.testing.assert_array_equal(sharding.to_host(w), x)
  try:
    sharding.rows_to_device(mesh, {"x": x[:12]})
  except ValueError as error:
    print(error)
  assert make_mesh(data=2).size == 2
"""


def test_eight_devices(python):
  flags = os.environ.get("XLA_FLAGS", "")
  done = python(
    "-c",
    textwrap.dedent(EIGHT),
    env={
      "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8",
      "JAX_PLATFORMS": "cpu",
    },
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("12 rows do not divide over the 8 parts")
