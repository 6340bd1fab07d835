"""What is wrong with a run's rows and problems, before its first round.

A dataset that lies in memory, as files do, is read from end to end; of one that
makes its examples when they are read, a part has to do.
"""

from collections.abc import Sequence

import ml_collections
import numpy as np
from jax.sharding import Mesh

from r1jax.data import chat, templates
from r1jax.data.mixture import Mixture
from r1jax.models.config import ModelConfig
from r1jax.parallel import sharding
from r1jax.rewards import Scores, accuracy
from r1jax.runtime.console import Console
from r1jax.types import Example, Tokenizer

BARREN = 3  # Rounds in a row without a group that teaches end a run.
SHOWN = 10  # Answers that are named one by one.


def in_memory(dataset: Sequence[Example]) -> Sequence[Example]:
  """The dataset, or nothing of one that makes examples when they are read.

  Of a mixture, all of each part that is in memory, whoever takes part.
  """
  if isinstance(dataset, Mixture):
    wholes = (in_memory(part.dataset) for part in dataset.parts.values())
    return [example for whole in wholes for example in whole]
  return dataset if isinstance(dataset, list | tuple) else ()


def is_in_memory(dataset: Sequence[Example]) -> bool:
  """Whether `in_memory` gives all examples that the dataset can have."""
  if isinstance(dataset, Mixture):
    return all(is_in_memory(part.dataset) for part in dataset.parts.values())
  return isinstance(dataset, list | tuple)


def check_rows(
  rows: ml_collections.ConfigDict, mesh: Mesh | None = None
) -> None:
  """Raises ValueError for rows that do not divide into microbatches.

  With a mesh, also for microbatches that do not divide over its devices.
  """
  at_once = rows.microbatch_rows
  shards = 1 if mesh is None else sharding.row_shards(mesh)
  if rows.max_rows % at_once:
    raise ValueError(
      f"rows.microbatch_rows {at_once} does not divide rows.max_rows "
      f"{rows.max_rows}"
    )
  if at_once % shards:
    raise ValueError(
      f"rows.microbatch_rows {at_once} do not divide over {shards} devices, "
      "those of the mesh axes data, fsdp and expert; choose a multiple, or "
      "another mesh"
    )


def check_packing(config: ml_collections.ConfigDict, longest: int) -> None:
  """Raises ValueError if the rows of an update could turn out too few.

  `longest` is the tokens of the longest prompt, its template included. The
  worst case is that all prompts have it and all completions `max_tokens`.
  """
  rows, limit = config.rows, config.sampling.max_tokens
  needed = rows_needed(config, longest)
  if not needed:
    raise ValueError(
      f"a prompt of up to {longest} tokens and a completion of "
      f"sampling.max_tokens {limit} do not fit rows.width {rows.width}; set it "
      f"to {longest - 1 + limit}"
    )
  if needed > rows.max_rows:
    prompts = config.prompts_per_round // config.minibatches
    enough = -(-needed // rows.microbatch_rows) * rows.microbatch_rows
    raise ValueError(
      f"rows.max_rows is {rows.max_rows}, but an update of {prompts} prompts "
      f"of up to {longest} tokens, each with {config.group_size} completions "
      f"of up to {limit}, can need {needed} rows of {rows.width}; set it to "
      f"{enough}: unused rows cost nothing"
    )


def check_dataset(
  dataset: Sequence[Example],
  words: Tokenizer,
  config: ml_collections.ConfigDict,
) -> None:
  """Raises ValueError for prompts that are too long for their window or row,
  for rows that the longest of them could turn out too few for, and for a
  template whose end of a turn would not stop the sampler.

  Prompts that are made when they are read can be as long as their window.
  """
  chat.check_end_of_turn(templates.find(config.template, words), words)
  examples = in_memory(dataset)
  longest = check_prompts(examples, words, config)
  if not is_in_memory(dataset):
    shared = chat.shared_tokens(config.template, words)
    longest = max(longest, len(shared) + config.sampling.prompt_tokens)
  check_packing(config, longest)


def check_vocabulary(words: Tokenizer, model: ModelConfig) -> None:
  """Raises ValueError if the tokenizer makes ids that the model lacks."""
  if max(words.vocab_size - 1, *words.eos_ids) >= model.vocab_size:
    raise ValueError(
      f"the tokenizer has {words.vocab_size} ids and the model "
      f"{model.vocab_size}; they do not belong together"
    )


def check_prompts(
  examples: Sequence[Example],
  words: Tokenizer,
  config: ml_collections.ConfigDict,
) -> int:
  """The tokens of the longest prompt, its template included; 0 without any.

  Raises ValueError if a prompt is too long for its window, or for its row: it
  names the first such example and what all of them need.
  """
  if not examples:
    return 0
  shared = len(chat.shared_tokens(config.template, words))
  prompts = chat.encode_prompts(examples, config.template, words)
  sizes = [len(ids) - shared for ids in prompts]
  window, longest = config.sampling.prompt_tokens, max(sizes)
  if longest > window:
    at = [i for i, size in enumerate(sizes) if size > window]
    raise ValueError(
      f"{examples[at[0]].id}: a prompt of {sizes[at[0]]} tokens beyond the "
      f"template, and sampling.prompt_tokens is {window}; set it to {longest} "
      f"or leave out the {len(at)} of {len(sizes)} problems that are longer"
    )
  row = shared + longest - 1 + config.sampling.max_tokens
  if row > config.rows.width:
    raise ValueError(
      f"{examples[sizes.index(longest)].id}: its prompt of {shared + longest} "
      f"tokens and a completion of sampling.max_tokens "
      f"{config.sampling.max_tokens} do not fit rows.width "
      f"{config.rows.width}; set it to {row}"
    )
  return shared + longest


def rows_needed(config: ml_collections.ConfigDict, longest: int) -> int:
  """Rows that are enough for any update; 0 if one completion fits no row.

  With prompts of `longest` tokens a row has room for k completions of
  `max_tokens`. Whatever their lengths are, `pack_rollout` opens a further row
  for a group only after k of them.
  """
  room = config.rows.width - (longest - 1)
  in_row = room // config.sampling.max_tokens
  if in_row < 1:
    return 0
  prompts = config.prompts_per_round // config.minibatches
  return prompts * -(-config.group_size // in_row)


def check_steps(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for steps at which no round ends."""
  names = ("num_steps", "reference_every", "checkpoint_every")
  steps_of = {name: config[name] for name in names}
  steps_of["evaluation.every"] = config.evaluation.every
  for name, steps in steps_of.items():
    if steps % config.minibatches:
      raise ValueError(
        f"{name} {steps} is not a multiple of minibatches "
        f"{config.minibatches}, the updates of a round"
      )


def check_sampling(sampling: ml_collections.ConfigDict) -> None:
  """Raises ValueError for a sampler that is not the policy."""
  for name, all_tokens in (("top_p", 1.0), ("top_k", 0)):
    if sampling.get(name, all_tokens) != all_tokens:
      raise ValueError(
        f"sampling.{name} is {sampling[name]}: what is learned from "
        "must be sampled from the whole distribution, or the ratios are wrong"
      )
  if not sampling.temperature > 0:
    raise ValueError(
      f"sampling.temperature is {sampling.temperature}: a policy that "
      "does not vary cannot be compared with itself"
    )


def check_limits(max_tokens: Sequence, *, most: int) -> None:
  """Raises ValueError for a schedule of lengths that is none."""
  before = -1
  for entry in max_tokens:
    if len(entry) != 2 or not 0 < entry[1] <= most:
      raise ValueError(
        f"max_tokens has {entry}: each entry is (first step, tokens), and the "
        f"tokens are at most sampling.max_tokens {most}"
      )
    if not before < entry[0]:
      raise ValueError(
        f"max_tokens has {entry} after step {before}: first steps begin at 0 "
        "or later, and each is above the one before it"
      )
    before = entry[0]


def explain_nothing(scores: Scores, config: ml_collections.ConfigDict) -> str:
  """What to do when `BARREN` rounds had no group that teaches; the last one's
  scores tell whether its problems were too hard or too easy."""
  rounds = config.dynamic_sampling.rounds
  task = scores.parts.get("accuracy", scores.total)
  task = task[np.isfinite(task)]
  if not task.size:
    found, advice = "nothing could be graded", "look at the grader's errors"
  else:
    found = f"all rewards of a group were equal (mean {task.mean():.3g})"
    advice = "take problems that the model solves sometimes, or a larger group"
  return (
    f"no group of the last {BARREN} rounds teaches anything, though each was "
    f"sampled {1 + rounds} times (dynamic_sampling.rounds {rounds}): {found}; "
    f"{advice}"
  )


def report_mixture(dataset: Sequence[Example], console: Console) -> None:
  """Says what a mixture is made of, and how much of it is left out."""
  if isinstance(dataset, Mixture):
    for line in dataset.describe():
      console.note(line)


def report_golds(dataset: Sequence[Example], console: Console) -> None:
  """Says which reference answers of mathematics are not right by themselves.

  Against such an answer a completion is right only if it is the same text, and
  is left ungraded if it is not.
  """
  examples = [
    e for e in in_memory(dataset) if e.domain.partition("/")[0] == "math"
  ]
  if not examples:
    return
  wrong = accuracy.verify_golds(examples)
  for name, answer in wrong[:SHOWN]:
    console.note(f"{name}: the answer {answer!r} does not verify itself")
  console.note(
    f"{len(examples) - len(wrong):,} of {len(examples):,} reference answers "
    "verify against themselves"
  )
