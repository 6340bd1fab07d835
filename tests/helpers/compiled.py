"""Programs compiled for a mesh, as the plan reads them."""

import jax
import jax.numpy as jnp

from r1jax.tools.plan import hlo


def compiled(fn, *shapes, mesh, specs):
  """The module of `fn` for float32 arguments of these shapes and specs."""
  arguments = [
    jax.ShapeDtypeStruct(
      shape, jnp.float32, sharding=jax.sharding.NamedSharding(mesh, spec)
    )
    for shape, spec in zip(shapes, specs)
  ]
  text = jax.jit(fn).lower(*arguments).compile().as_text()
  return hlo.parse(text)
