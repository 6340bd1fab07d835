"""The checks of `r1jax doctor` for supervised fine-tuning."""

import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np

from r1jax import data
from r1jax.data import tokenizer as tokenizers
from r1jax.parallel.mesh import make_mesh
from r1jax.tools.checks import OK, Context, Line
from r1jax.training import inspection, sft


def documents(context: Context) -> Iterator[Line]:
  """Checks the tokenizer and the first batches of SFT."""
  c, first = context.config, 4
  settings = c.tokenizer.to_dict()
  settings["documents"] = min(settings["documents"], 2000)
  with tempfile.TemporaryDirectory() as folder:
    tokenizer = tokenizers.load_or_fit(
      (example.answer for example in context.dataset),
      pathlib.Path(folder),
      **settings,
    )
  inspection.check_vocabulary(tokenizer, context.architecture)
  eos = tokenizer.id_to_token(tokenizer.eos_ids[0])
  yield Line(
    OK,
    f"a tokenizer of {settings['documents']:,} documents has "
    f"{tokenizer.vocab_size} ids; EOS is {eos!r}",
  )
  mesh, tokens, used = make_mesh(data=1), 0, 0
  for step in range(first):
    examples = data.draw(
      context.dataset, c.batch_examples, seed=c.seed, step=step
    )
    pieces = sft.demonstrations(examples, c.template, tokenizer)
    batch = sft.make_batch(mesh, pieces, **c.rows)
    tokens += int(batch.num_tokens)
    rows = np.asarray(batch.packed.positions >= 0).any(axis=-1)
    used = max(used, int(rows.sum()))
  read = c.num_steps * c.batch_examples
  yield Line(
    OK,
    f"a batch: {c.batch_examples} documents, about {tokens // first:,} tokens, "
    f"in up to {used} of {c.rows.max_rows} rows of {c.rows.width}",
  )
  yield Line(
    OK,
    f"{c.num_steps:,} steps = {read:,} documents = "
    f"{read / len(context.dataset):.3g} of the dataset, about "
    f"{c.num_steps * tokens // first:,} tokens",
  )
