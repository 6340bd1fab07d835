"""What surrounds the loss: policies that are asked, and copied."""

import jax.numpy as jnp

from r1jax.models.presets import preset
from r1jax.training import objective


def test_the_reference_is_a_copy_in_the_dtypes_that_layers_compute_with():
  params = {"moe": {"router": {"weight": jnp.ones(2)}, "out": jnp.ones(2)}}
  config = preset("tiny_deepseek", compute_dtype="bfloat16")
  copied = objective.reference_copy(config, params)["moe"]
  assert copied["out"].dtype == jnp.bfloat16
  assert copied["router"]["weight"].dtype == jnp.float32
  config = preset("tiny_deepseek")
  same = objective.reference_copy(config, params)["moe"]["out"]
  assert (
    same.unsafe_buffer_pointer() != params["moe"]["out"].unsafe_buffer_pointer()
  )
