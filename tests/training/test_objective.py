"""What surrounds the loss: policies that are asked, and copied."""

import jax.numpy as jnp

from r1jax.training import objective


def test_the_reference_is_a_copy_in_the_compute_dtype():
  params = {"moe": {"router": jnp.ones(2), "out": jnp.ones(2)}}
  copied = objective.reference_copy("bfloat16", params)["moe"]
  assert copied["out"].dtype == jnp.bfloat16
  assert copied["router"].dtype == jnp.float32
  same = objective.reference_copy("float32", params)["moe"]["out"]
  assert (
    same.unsafe_buffer_pointer() != params["moe"]["out"].unsafe_buffer_pointer()
  )
