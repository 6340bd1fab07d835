"""The teacher of a distillation: a model whose distribution is imitated.

In SFT it marks each microbatch with its k likeliest tokens at every target. The
loss then needs no second model; see `losses.distillation.top_k_kl`. In RL it
adds to the advantages of what the policy has sampled.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from r1jax.losses.distillation import on_policy_advantages
from r1jax.models import transformer
from r1jax.ops.logprobs import LOGITS, mask_padding
from r1jax.training import inspection, models
from r1jax.training.policy import policy_forward
from r1jax.training.state import make_params
from r1jax.types import Batch, Params, Tokenizer


def make_teacher(
  mesh: Mesh,
  tokenizer: Tokenizer,
  /,
  *,
  path: str | None = None,
  top_k: int = 0,
  dtype: Any = "bfloat16",
) -> Callable[[Batch], Batch]:
  """A function that adds what a teacher would write to a microbatch.

  Args:
    mesh: over which the teacher is split.
    tokenizer: of the student, and of the teacher.
    path: the Hugging Face directory of the teacher; None for no teacher, which
      leaves batches as they are.
    top_k: the number of tokens of which each target has the probability; the
      others are one event. The whole vocabulary gives the whole distribution.
    dtype: of the teacher's parameters and activations.

  Raises ValueError for a `top_k` that is not in the vocabulary.
  """
  if path is None:
    return lambda batch: batch
  if not 0 < top_k <= tokenizer.vocab_size:
    raise ValueError(
      f"teacher.top_k is {top_k}; it must be in 1..{tokenizer.vocab_size:,}"
    )
  model, params = load(mesh, tokenizer, path, dtype)
  mark = jax.jit(functools.partial(teach, model, tokenizer.vocab_size, top_k))
  return functools.partial(mark, params)


def make_guide(
  mesh: Mesh,
  tokenizer: Tokenizer,
  temperature: float,
  /,
  *,
  path: str | None = None,
  weight: float = 1.0,
  dtype: Any = "bfloat16",
) -> Callable[[Batch], Batch] | None:
  """A function that adds a teacher's advantages to a microbatch of RL.

  With rewards of weight 0 this is on-policy distillation: the loss then follows
  the gradient of the KL of the policy from the teacher. See
  `losses.distillation.on_policy_advantages`.

  Args:
    mesh: over which the teacher is split.
    tokenizer: of the policy, and of the teacher.
    temperature: of the policy, and of the teacher.
    path: the Hugging Face directory of the teacher; None for no teacher, for
      which the result is None.
    weight: of the teacher's advantages, which are in nats.
    dtype: of the teacher's parameters and activations.
  """
  if path is None:
    return None
  model, params = load(mesh, tokenizer, path, dtype)
  guide = functools.partial(
    guided, model, tokenizer.vocab_size, temperature, weight
  )
  return functools.partial(jax.jit(guide), params)


def guided(
  model: transformer.Transformer,
  vocab_size: int,
  temperature: float,
  weight: float,
  params: Params,
  batch: Batch,
) -> Batch:
  """The batch with `weight` times the teacher's advantages added to its own."""
  forward = policy_forward(model, vocab_size, temperature, params, batch.packed)
  more = on_policy_advantages(batch.sampler_logprobs, forward.logprobs)
  more = jnp.where(batch.weights > 0, weight * more, 0.0)
  return batch.replace(advantages=batch.advantages + more)


def load(
  mesh: Mesh, tokenizer: Tokenizer, path: str, dtype: Any
) -> tuple[transformer.Transformer, Params]:
  """The teacher in a directory, and its parameters on the devices."""
  initial = models.pretrained(
    False, path=path, dtype=dtype, compute_dtype=dtype
  )
  inspection.check_vocabulary(tokenizer, initial.config)
  return transformer.Transformer(initial.config), make_params(mesh, initial)


def teach(
  model: transformer.Transformer,
  vocab_size: int,
  top_k: int,
  params: Params,
  batch: Batch,
) -> Batch:
  """The batch with the teacher's `top_k` likeliest tokens at every slot."""
  hidden = transformer.forward(model, params, batch.packed).hidden

  def likeliest(hidden):
    logits = mask_padding(transformer.logits(params, hidden), vocab_size)
    return jax.lax.top_k(jax.nn.log_softmax(logits), top_k)

  logprobs, ids = by_columns(likeliest, model.config.vocab_size, hidden)
  return batch.replace(teacher_logprobs=logprobs, teacher_ids=ids)


def logprobs_of(
  params: Params,
  hidden: Float[Array, "B T D"],
  ids: Int[Array, "B T k"],
  vocab_size: int,
) -> Float[Array, "B T k"]:
  """log p of k token ids at every slot, in nats; see `by_columns`.

  Ids from `vocab_size` on have probability 0.
  """

  def chosen(hidden, ids):
    logits = mask_padding(transformer.logits(params, hidden), vocab_size)
    logprobs = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(logprobs, ids, axis=-1)

  width = transformer.unembed(params).shape[1]
  return by_columns(chosen, width, hidden, ids)


def by_columns(fn: Callable, width: int, *arrays: Array):
  """fn(*arrays) of arrays [B, T, ...], for a few columns of T at once.

  `fn` makes arrays [B, columns, width], of which at most LOGITS numbers are in
  memory, as its gradient runs it again.
  """
  rows, tokens = arrays[0].shape[:2]
  columns = max(1, min(tokens, LOGITS // (rows * width)))
  count = -(-tokens // columns)

  def split(x):
    fill = ((0, 0), (0, count * columns - tokens), *((0, 0),) * (x.ndim - 2))
    x = jnp.pad(x, fill).reshape(rows, count, columns, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0)

  def joined(x):
    x = jnp.moveaxis(x, 0, 1).reshape(rows, count * columns, *x.shape[3:])
    return x[:, :tokens]

  parts = jax.lax.map(
    lambda part: jax.checkpoint(fn)(*part), tuple(map(split, arrays))
  )
  return jax.tree.map(joined, parts)
