"""Which implementation of an op runs: plain JAX, or a kernel beside it."""

import functools
import os
from collections.abc import Callable

from jax import lax

# Where kernels run: "tpu", in programs for TPUs; "never"; or "interpret",
# everywhere, interpreted, for tests.
KERNELS = os.environ.get("R1JAX_KERNELS", "tpu")


def choose(plain: Callable, kernel: Callable, *arguments):
  """`plain(*arguments)`, or `kernel(*arguments)` where kernels run.

  Both return arrays of the same shapes. The platform is the one that the
  program is compiled for. A differentiable op must call this within its rules
  for the gradient: that of this choice would save what either side needs.

  Args:
    plain: in plain JAX.
    kernel: has a keyword argument `interpret`.
    *arguments: trees of arrays.

  Raises:
    ValueError: if the environment variable R1JAX_KERNELS has another value.
  """
  if KERNELS == "tpu":
    return lax.platform_dependent(*arguments, tpu=kernel, default=plain)
  if KERNELS == "never":
    return plain(*arguments)
  if KERNELS == "interpret":
    return functools.partial(kernel, interpret=True)(*arguments)
  raise ValueError(
    f"R1JAX_KERNELS is {KERNELS!r}: set it to tpu, never or interpret"
  )
