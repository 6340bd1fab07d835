"""Checks of a run's config and dataset before its first round.

Datasets in memory, such as those read from files, are checked completely.
Generated datasets, whose examples are computed on access, are checked by their
limits only.
"""

from collections.abc import Sequence

import ml_collections
import numpy as np
from jax.sharding import Mesh

from r1jax.data import chat, templates
from r1jax.data.mixture import Mixture
from r1jax.models.config import ModelConfig
from r1jax.rewards import Scores, accuracy
from r1jax.runtime.console import Console
from r1jax.types import Example, Tokenizer

MAX_NO_SIGNAL = 3  # A run ends after so many rounds without any signal.
MAX_SHOWN = 10  # The most answers to list one by one.


def in_memory(dataset: Sequence[Example]) -> Sequence[Example]:
  """The examples of a dataset that are in memory; none of generated datasets.

  For a mixture, these are all examples of its parts that are in memory, whether
  the mixture draws them or not.
  """
  if isinstance(dataset, Mixture):
    wholes = (in_memory(part.dataset) for part in dataset.parts.values())
    return [example for whole in wholes for example in whole]
  return dataset if isinstance(dataset, list | tuple) else ()


def is_in_memory(dataset: Sequence[Example]) -> bool:
  """Whether all examples of the dataset are in memory."""
  if isinstance(dataset, Mixture):
    return all(is_in_memory(part.dataset) for part in dataset.parts.values())
  return isinstance(dataset, list | tuple)


def check_rows(
  rows: ml_collections.ConfigDict, mesh: Mesh | None = None
) -> None:
  """Raises ValueError for rows that are none.

  With a mesh, it also raises if its axis `context` does not divide a width.
  """
  if not rows.widths or min(rows.widths) < 1 or rows.shard_rows < 1:
    raise ValueError(
      f"rows.widths {tuple(rows.widths)} and rows.shard_rows "
      f"{rows.shard_rows} are numbers of tokens and of rows, at least 1"
    )
  context = 1 if mesh is None else mesh.shape["context"]
  for width in rows.widths:
    if width % context:
      raise ValueError(
        f"mesh.context {context} does not divide the {width} tokens of "
        "rows.widths; choose a multiple"
      )


def check_width(
  config: ml_collections.ConfigDict,
  longest: int,
  of: str = "a prompt of up to",
) -> None:
  """Raises ValueError if the longest text might not fit the widest row.

  Args:
    config: of the run.
    longest: tokens of the longest prompt, template included.
    of: names that prompt in the error.
  """
  width, limit = max(config.rows.widths), config.sampling.max_tokens
  if longest - 1 + limit > width:
    raise ValueError(
      f"{of} {longest} tokens and a completion of sampling.max_tokens {limit} "
      f"do not fit the widest of rows.widths, {width}; it must be at least "
      f"{longest - 1 + limit}"
    )


def check_dataset(
  dataset: Sequence[Example],
  tokenizer: Tokenizer,
  config: ml_collections.ConfigDict,
) -> None:
  """Raises ValueError if the dataset does not fit the config.

  Prompts may be too long, or rows too narrow; see `check_prompts` and
  `check_width`. Generated prompts are assumed to be as long as
  `sampling.prompt_tokens` allows. It also raises if the template ends turns
  with a token that does not stop the sampler.
  """
  chat.check_end_of_turn(templates.find(config.template, tokenizer), tokenizer)
  examples = in_memory(dataset)
  longest = check_prompts(examples, tokenizer, config)
  if not is_in_memory(dataset):
    shared = chat.shared_tokens(config.template, tokenizer)
    longest = max(longest, len(shared) + config.sampling.prompt_tokens)
  check_width(config, longest)


def check_adapter(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for what a run of LoRA cannot do."""
  if config.model.name != "lora":
    return
  if config.router_bias_speed:
    raise ValueError(
      "router_bias_speed must be 0 with model.name 'lora': the router stays"
    )
  every = config.get("reference_every")
  if every is not None and every < config.num_steps:
    raise ValueError(
      f"reference_every is {every}, but the reference of an adapter is always "
      f"its model; set it to num_steps, {config.num_steps}"
    )


def check_vocabulary(tokenizer: Tokenizer, model: ModelConfig) -> None:
  """Raises ValueError if the tokenizer has ids that the model lacks."""
  if max(tokenizer.vocab_size - 1, *tokenizer.eos_ids) >= model.vocab_size:
    raise ValueError(
      f"the tokenizer has {tokenizer.vocab_size} ids, but the model only "
      f"{model.vocab_size}; use the tokenizer of the model"
    )


def check_prompts(
  examples: Sequence[Example],
  tokenizer: Tokenizer,
  config: ml_collections.ConfigDict,
) -> int:
  """The number of tokens of the longest prompt, template included.

  It is 0 without examples. Raises ValueError as `check_windows` does, and if a
  prompt and its completion do not fit a row.
  """
  if not examples:
    return 0
  longest, id = check_windows(examples, tokenizer, config)
  check_width(config, longest, of=f"{id}: its prompt of")
  return longest


def check_windows(
  examples: Sequence[Example],
  tokenizer: Tokenizer,
  config: ml_collections.ConfigDict,
) -> tuple[int, str]:
  """The tokens of the longest prompt, template included, and its example's id.

  Raises ValueError if a prompt is longer than `sampling.prompt_tokens` (beyond
  the template). The error names the first such example and the setting that
  fits all.
  """
  shared = len(chat.shared_tokens(config.template, tokenizer))
  prompts = chat.encode_prompts(examples, config.template, tokenizer)
  sizes = [len(ids) - shared for ids in prompts]
  window, longest = config.sampling.prompt_tokens, max(sizes)
  if longest > window:
    at = [i for i, size in enumerate(sizes) if size > window]
    raise ValueError(
      f"{examples[at[0]].id}: a prompt of {sizes[at[0]]} tokens beyond the "
      f"template, and sampling.prompt_tokens is {window}; set it to {longest} "
      f"or leave out the {len(at)} of {len(sizes)} problems that are longer"
    )
  return shared + longest, examples[sizes.index(longest)].id


def check_steps(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for periods in steps that are not whole rounds."""
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
  """Raises ValueError if sampling would not draw from the policy itself."""
  for name, all_tokens in (("top_p", 1.0), ("top_k", 0)):
    if sampling.get(name, all_tokens) != all_tokens:
      raise ValueError(
        f"sampling.{name} is {sampling[name]}; set it to {all_tokens}, because "
        "training needs samples from the whole distribution: otherwise the "
        "ratios are wrong"
      )
  if not sampling.temperature > 0:
    raise ValueError(
      f"sampling.temperature is {sampling.temperature}; it must be above 0, "
      "because a group of equal completions has no advantages"
    )


def check_limits(max_tokens: Sequence, *, most: int) -> None:
  """Raises ValueError for an invalid schedule of token limits.

  `max_tokens` is [(first step, tokens), ...]; no limit may exceed `most`.
  """
  before = -1
  for entry in max_tokens:
    if len(entry) != 2 or not 0 < entry[1] <= most:
      raise ValueError(
        f"max_tokens has {entry}: each entry is (first step, tokens), and the "
        f"tokens are at most sampling.max_tokens {most}"
      )
    if not before < entry[0]:
      raise ValueError(
        f"max_tokens has {entry} after step {before}: first steps must be at "
        "least 0 and increase"
      )
    before = entry[0]


def explain_no_signal(scores: Scores, config: ml_collections.ConfigDict) -> str:
  """The error text, with advice, after `MAX_NO_SIGNAL` rounds without signal.

  `scores` are those of the last round; they show whether its problems were too
  hard or too easy.
  """
  rounds = config.dynamic_sampling.rounds
  task = scores.parts.get("accuracy", scores.total)
  task = task[np.isfinite(task)]
  if not task.size:
    cause, advice = "nothing could be graded", "check the errors of the grader"
  else:
    cause = f"all rewards of a group were equal (mean {task.mean():.3g})"
    advice = "use problems that the model solves sometimes, or a larger group"
  return (
    f"no group of the last {MAX_NO_SIGNAL} rounds has a training signal, "
    f"though each was sampled {1 + rounds} times (dynamic_sampling.rounds "
    f"{rounds}): {cause}; {advice}"
  )


def report_mixture(dataset: Sequence[Example], console: Console) -> None:
  """Prints the parts of a mixture, and how many examples are left out."""
  if isinstance(dataset, Mixture):
    for line in dataset.describe():
      console.note(line)


def report_golds(dataset: Sequence[Example], console: Console) -> None:
  """Prints the reference answers of mathematics that do not verify themselves.

  Such an answer cannot be parsed: a completion is correct if its answer is the
  same text, and is otherwise left ungraded.
  """
  examples = [
    e for e in in_memory(dataset) if e.domain.partition("/")[0] == "math"
  ]
  if not examples:
    return
  wrong = accuracy.verify_golds(examples)
  for name, answer in wrong[:MAX_SHOWN]:
    console.note(f"{name}: the answer {answer!r} does not verify itself")
  console.note(
    f"{len(examples) - len(wrong):,} of {len(examples):,} reference answers "
    "verify against themselves"
  )
