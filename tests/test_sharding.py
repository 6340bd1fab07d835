"""What crosses the host boundary comes back as it was."""

import os
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import sharding

BATCH = {"tokens": np.arange(24, dtype=np.int32).reshape(8, 3)}


def test_assemble_and_local_are_inverse():
  mesh = sharding.make_mesh()
  placed = sharding.assemble(mesh, BATCH)
  assert isinstance(placed["tokens"], jax.Array)
  np.testing.assert_array_equal(
    sharding.local(placed)["tokens"], BATCH["tokens"]
  )


def test_what_crosses_is_copied():
  batch = {"x": np.ones((64, 64), np.float32)}
  placed = sharding.assemble(sharding.make_mesh(), batch)
  batch["x"][:] = 2
  assert float(placed["x"].sum()) == 64 * 64
  back = sharding.local(placed)
  back["x"][:] = 3
  assert float(placed["x"].sum()) == 64 * 64


def test_local_survives_donation():
  mesh = sharding.make_mesh()
  placed = sharding.replicate(mesh, {"x": np.ones((64, 64), np.float32)})
  back = sharding.local(placed)
  step = jax.jit(lambda t: jax.tree.map(lambda x: x * 5, t), donate_argnums=0)
  jax.block_until_ready(step(placed))
  assert back["x"].max() == 1


def test_local_keeps_scalars_and_host_values():
  tree = {"loss": jnp.float32(2.5), "n": 3, "none": None}
  back = sharding.local(tree)
  assert back["loss"] == 2.5
  assert back["loss"].shape == ()
  assert back["n"] == 3
  assert back["none"] is None


def test_a_mesh_beyond_the_devices_is_refused():
  with pytest.raises(ValueError, match=r"mesh\.data is 4096.*set it to -1"):
    sharding.make_mesh(data=4096)
  with pytest.raises(ValueError, match=r"mesh\.data is 0"):
    sharding.make_mesh(data=0)


def test_scalars_have_no_rows():
  with pytest.raises(ValueError, match="no rows do not divide"):
    sharding.assemble(sharding.make_mesh(), {"x": np.float32(1)})


EIGHT = """
  import jax, numpy as np
  from r1jax import sharding
  mesh = sharding.make_mesh()
  assert mesh.shape == {"data": 8}, mesh.shape
  x = np.arange(48, dtype=np.float32).reshape(16, 3)
  placed = sharding.assemble(mesh, {"x": x})["x"]
  assert [s.data.shape for s in placed.addressable_shards] == [(2, 3)] * 8
  total = jax.jit(lambda x: x.sum(0))(placed)
  np.testing.assert_allclose(sharding.local(total), x.sum(0))
  np.testing.assert_array_equal(sharding.local(placed), x)
  doubled = jax.jit(lambda x: 2 * x)(placed)
  assert doubled.sharding.is_equivalent_to(sharding.rows(mesh), 2)
  w = sharding.replicate(mesh, {"w": x})["w"]
  assert len(w.addressable_shards) == 8 and w.is_fully_replicated
  np.testing.assert_array_equal(sharding.local(w), x)
  try:
    sharding.assemble(mesh, {"x": x[:12]})
  except ValueError as error:
    print(error)
  assert sharding.make_mesh(data=2).shape == {"data": 2}
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
  assert done.stdout.startswith("12 rows do not divide over the 8 devices")
