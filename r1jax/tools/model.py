"""A model in memory, for notebooks and scripts.

model = r1jax.load()                      # The shipped base model.
samples = model.sample(["6 + 7 ="], 4)
model.evaluate(examples)["sums"]["pass@1"]
model.save("exported")
"""

import dataclasses
import functools
import importlib.resources
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import hf
from r1jax.data import chat
from r1jax.data import tokenizer as tokenizers
from r1jax.hf import config as configs
from r1jax.hf import gguf_files
from r1jax.models import transformer
from r1jax.models.config import ModelConfig
from r1jax.models.rows import pack_rows
from r1jax.models.weights import sizes
from r1jax.parallel.mesh import make_mesh, row_shards
from r1jax.rewards.pool.pool import GraderPool
from r1jax.rollouts.engine import Engine, make_engine
from r1jax.runtime import process
from r1jax.tools import convert
from r1jax.training import evaluator, measures, models
from r1jax.types import Completion, Example, Params, Rollout, Tokenizer

SLOTS = 16, 64  # The fewest and the most completions sampled at once.
DECODE_STEPS = 8  # Tokens between two looks of the host.
BUCKET = 64  # Lengths are rounded up to multiples: each is compiled for.


class Samples(NamedTuple):
  """G completions of each of P prompts, group after group."""

  examples: list[Example]  # [P * G]: that of each completion.
  completions: list[Completion]  # [P * G]
  rollout: Rollout  # The same as token ids, with log-probabilities.


@dataclasses.dataclass(frozen=True, repr=False)
class Model:
  """A model and its tokenizer; made by `load`, and never changed."""

  config: ModelConfig
  params: Params
  tokenizer: Tokenizer
  files: pathlib.Path  # The directory that holds the tokenizer's files.
  provenance: Mapping[str, Any] | None = None  # How the model was trained.

  def __repr__(self):
    count = sizes(self.config)["total"]
    return f"{configs.architecture(self.config)}, {count:,} parameters"

  @property
  def transformer(self) -> transformer.Transformer:
    """The Flax module; see `r1jax.models.transformer` for what it computes."""
    return transformer.Transformer(self.config)

  @property
  def template(self) -> str:
    """The default template: the tokenizer's own, or else R1-Zero's."""
    return "r1_zero" if self.tokenizer.chat_template is None else "chat"

  def sample(
    self,
    prompts: Sequence[Example | str],
    group_size: int = 1,
    *,
    max_tokens: int = 256,
    temperature: float | int = 1.0,
    top_p: float | int = 1.0,
    template: str | None = None,
    seed: int = 0,
  ) -> Samples:
    """`group_size` completions of each prompt.

    Examples:
      >>> import r1jax
      >>> model = r1jax.load()
      >>> samples = model.sample(["6 + 7 ="], max_tokens=32, temperature=0)
      >>> samples.completions[0].num_tokens <= 32
      True

    Args:
      prompts: questions; the template is written around them.
      group_size: G
      max_tokens: of a completion, EOS included.
      temperature: of sampling; 0 takes the most probable token.
      top_p: share of the probability that tokens are drawn from.
      template: see `r1jax.data.templates`; None for `self.template`.
      seed: of everything sampled.
    """
    template = template or self.template
    examples = [Example(p, "") if isinstance(p, str) else p for p in prompts]
    ids = chat.encode_prompts(examples, template, self.tokenizer)
    engine = self.engine(
      template,
      ids,
      group_size,
      max_tokens=max_tokens,
      temperature=temperature,
      top_p=top_p,
    )
    params = engine.prepare(self.params)
    rollout = engine(params, ids, group_size, seed=seed, round=0)
    prefill = chat.prefill(template, self.tokenizer)
    read = measures.completions(
      rollout, examples, self.tokenizer, max_tokens, prefill
    )
    return Samples(*read, rollout)

  def logprobs(self, texts: Sequence[str | Sequence[int]]) -> list[np.ndarray]:
    """log p of every token of each text given those before it, in nats.

    Examples:
      >>> import r1jax
      >>> (values,) = r1jax.load().logprobs(["6 + 7 = 13"])
      >>> float(values[0]), bool((values <= 0).all())
      (0.0, True)

    The first token of a text has nothing before it; its value is 0. A text may
    be given as token ids.
    """
    encode = self.tokenizer.encode
    rows = [
      [*self.tokenizer.prefix_ids, *encode(text)]
      if isinstance(text, str)
      else [*text]
      for text in texts
    ]
    width = -(-max(map(len, rows)) // BUCKET) * BUCKET
    tokens = np.zeros((len(rows), width), np.int32)
    for row, ids in zip(tokens, rows):
      row[: len(ids)] = ids
    values = np.asarray(
      _logprobs(
        self.transformer, self.params, tokens, self.tokenizer.vocab_size
      )
    )
    return [value[: len(ids)] for value, ids in zip(values, rows)]

  def score(self, rollout: Rollout) -> np.ndarray:
    """log p [P, G, Tc] of the sampled tokens of a rollout, in nats.

    The layout is that of `rollout.logprobs`, which the sampler has computed.
    Values are of temperature 1, and 0 where nothing was sampled.
    """
    shape = rollout.lengths.shape
    rows = [
      rollout.prompts[p, : rollout.prompt_lengths[p]].tolist()
      + rollout.completions[p, g, : rollout.lengths[p, g]].tolist()
      for p, g in np.ndindex(shape)
    ]
    result = np.zeros(rollout.logprobs.shape, np.float32)
    for place, values in zip(np.ndindex(shape), self.logprobs(rows)):
      length = rollout.lengths[place]
      result[place][:length] = values[len(values) - length :]
    return np.where(rollout.sampled_mask, result, 0)

  def evaluate(
    self,
    examples: Sequence[Example],
    samples: int = 4,
    *,
    max_tokens: int = 256,
    temperature: float | int = 1.0,
    top_p: float | int = 1.0,
    template: str | None = None,
    seed: int = 0,
    accuracy: Any = 1.0,
  ) -> dict[str, dict[str, float]]:
    """Metrics of each task; see `r1jax.training.measures.measure`.

    The task of an example is the last part of its domain.

    Args:
      examples: problems with answers.
      samples: completions of each problem.
      max_tokens: see `sample` for this and the next four.
      temperature: see `sample`.
      top_p: see `sample`.
      template: see `sample`.
      seed: see `sample`.
      accuracy: the entry "accuracy" of `rewards` in a config.
    """
    template = template or self.template
    sets = [
      evaluator.Problems(task, problems, samples)
      for task, problems in evaluator.by_task(examples, len(examples)).items()
    ]
    ids = chat.encode_prompts(examples, template, self.tokenizer)
    engine = self.engine(
      template,
      ids,
      samples,
      max_tokens=max_tokens,
      temperature=temperature,
      top_p=top_p,
    )
    with GraderPool(num_workers=process.cores(), timeout=5.0) as pool:
      numbers = evaluator.evaluate(
        engine,
        self.params,
        sets,
        self.tokenizer,
        pool,
        template=template,
        seed=seed,
        accuracy_reward=accuracy,
      )
    of = lambda task: f"eval/{task}/"
    return {
      task: {
        key.removeprefix(of(task)): float(value)
        for key, value in numbers.items()
        if key.startswith(of(task))
      }
      for task, _, _ in sets
    }

  def save(self, directory: str | pathlib.Path, dtype: str | None = None):
    """Writes the model and its tokenizer in Hugging Face layout.

    `dtype` is that of the weights; None for the one that they have. Raises
    ValueError if `directory` holds anything but a model.
    """
    hf.save(
      directory,
      self.config,
      self.params,
      tokenizer=self.files,
      provenance=self.provenance,
      dtype=dtype,
    )

  def engine(
    self,
    template: str,
    prompts: Sequence[Sequence[int]],
    group_size: int,
    **sampling,
  ) -> Engine:
    """An engine for so many completions of each of these prompts."""
    mesh, longest = make_mesh(), max(map(len, prompts))
    completions = len(prompts) * group_size
    prefix = chat.shared_tokens(template, self.tokenizer)
    slots = min(max(SLOTS[0], 1 << (completions - 1).bit_length()), SLOTS[1])
    shards = row_shards(mesh)
    return make_engine(
      self.transformer,
      self.tokenizer,
      mesh,
      prefix,
      num_slots=-(-slots // shards) * shards,
      decode_steps=DECODE_STEPS,
      prompt_tokens=-(-(longest - len(prefix)) // BUCKET) * BUCKET,
      **sampling,
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def _logprobs(model, params, tokens, vocab_size):
  """log p of each token [B, T], among the ids that the tokenizer knows."""
  hidden = transformer.forward(model, params, pack_rows(tokens)).hidden
  values, _ = transformer.logprobs(
    params, hidden[:, :-1], tokens[:, 1:], vocab_size=vocab_size
  )
  return jnp.pad(values, ((0, 0), (1, 0)))


def load(
  path: str | pathlib.Path | None = None,
  *,
  dtype: str | None = None,
  cpu_devices: int = 1,
) -> Model:
  """The model in a directory of Hugging Face layout, of a run, or a GGUF file.

  Examples:
    >>> import r1jax
    >>> r1jax.load()
    DeepseekV3ForCausalLM, 664,064 parameters

  Args:
    path: a directory that `Model.save`, transformers or a release has written,
      the workdir of a run, whose newest checkpoint is read, or a GGUF file of
      Llama or Qwen2. None for the base model that is part of the package.
    dtype: of weights and computation; None for float32 on a CPU and bfloat16
      on an accelerator.
    cpu_devices: the most CPU cores that rows are split over; each holds the
      weights. It has no effect once JAX has computed.

  Raises ValueError if there is no such model, or no tokenizer beside it.
  """
  path = pathlib.Path(path or importlib.resources.files("r1jax") / "base")
  process.start(cpu_devices)
  if dtype is None:
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  file = gguf_files.is_gguf(path)
  if file or "architectures" in configs.read_json(
    hf.directory(path) / "config.json"
  ):
    sizes, params = models.load(
      "pretrained", path=str(path), dtype=dtype, compute_dtype=dtype
    )
    files = pathlib.Path(convert.unpacked(path).name) if file else path
    source = convert.Source(sizes, params, files, None)
  else:
    source = convert.find(path, dtype=dtype, mtp=True)
  if source.tokenizer is None:
    raise ValueError(f"{path} holds no tokenizer, and names none")
  return Model(
    models.with_execution(source.config, compute_dtype=dtype),
    jax.device_put(source.params),
    tokenizers.load(str(source.tokenizer)),
    source.tokenizer,
    source.provenance,
  )
