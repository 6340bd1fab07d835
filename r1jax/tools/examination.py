"""A config under examination, and what the checks of the doctor find in it."""

import functools
from typing import NamedTuple

from ml_collections import ConfigDict

from r1jax import data
from r1jax.data import chat
from r1jax.data import tokenizer as tokenizers
from r1jax.models.config import ModelConfig
from r1jax.training import evaluator, inspection, models

FIRST = 256  # The number of examples to check of a generated dataset.
PROBLEMS, SAMPLES = 8, 4  # Of each task, to evaluate the base model.

OK, NOTE, WRONG, INFO = "ok", "note", "WRONG", ""


class Line(NamedTuple):
  """One finding; lines with the verdict INFO are never wrong."""

  verdict: str
  text: str


class Context:
  """The config, and objects that several checks need, computed on first use."""

  def __init__(self, config: ConfigDict):
    self.config = config
    self.too_large = False  # Whether the run exceeds this machine's memory.

  @functools.cached_property
  def dataset(self):
    """The training dataset."""
    return data.load(**self.config.dataset.to_dict())

  @functools.cached_property
  def examples(self):
    """The whole dataset if it is in memory, else its first examples."""
    size = min(len(self.dataset), FIRST)
    whole = inspection.in_memory(self.dataset)
    return whole or [self.dataset[i] for i in range(size)]

  @functools.cached_property
  def tokenizer(self):
    """The tokenizer."""
    return tokenizers.load(**self.config.tokenizer)

  @functools.cached_property
  def model(self):
    """The config and the parameters of the model."""
    return models.load(**self.config.model)

  @functools.cached_property
  def architecture(self) -> ModelConfig:
    """The config of the model."""
    return models.initial(**self.config.model).config

  @functools.cached_property
  def shared(self):
    """The token ids that all prompts begin with."""
    return chat.shared_tokens(self.config.template, self.tokenizer)

  @functools.cached_property
  def sizes(self):
    """The number of tokens of each prompt beyond the shared ones."""
    template = self.config.template
    prompts = chat.encode_prompts(self.examples, template, self.tokenizer)
    return [len(ids) - len(self.shared) for ids in prompts]

  @functools.cached_property
  def brief(self):
    """The config of the same run with one round and learning rate 0."""
    c = ConfigDict(self.config.to_dict())
    c.num_steps = c.checkpoint_every = c.evaluation.every = c.minibatches
    c.optimizer.learning_rate = c.router_bias_speed = 0.0
    c.evaluation.problems = c.evaluation.problems_between = PROBLEMS
    c.evaluation.samples = c.evaluation.samples_between = SAMPLES
    if "larger" in c.evaluation:
      del c.evaluation.larger
    if "tasks" in c.evaluation.test:  # Tasks alternate: generate no more.
      c.evaluation.test.size = PROBLEMS * len(c.evaluation.test.tasks)
    return c

  @functools.cached_property
  def sets(self) -> list[evaluator.Problems]:
    """The sets of test problems of the run."""
    return evaluator.evaluation(**self.config.evaluation.to_dict())["whole"]

  @functools.cached_property
  def tested(self):
    """A few test problems of each task."""
    sets = [part for part in self.sets if not part.name.endswith("+1")]
    return [example for part in sets for example in part.examples[:PROBLEMS]]
