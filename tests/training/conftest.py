"""A toy base model in a directory, and tasks that it can learn in seconds."""

import jax
import job
import ml_collections
import numpy as np
import pytest

from r1jax import data, hf, rewards
from r1jax.data import tokenizer
from r1jax.losses.presets import PRESETS
from r1jax.models import transformer
from r1jax.models.presets import preset
from r1jax.models.weights import weights
from r1jax.types import Example

UNLIKE = ("gspo", "r1")  # Recipes; the others wait for `make soak`.
LETTERS = "abcdefgh 0123456789+=?\n"


def draw(config, scale=0.1, seed=0):
  """Parameters from NumPy: nothing to compile."""
  rng = np.random.default_rng(seed)

  def one(path, weight):
    centre = 1.0 if path[-1].key == "scale" else 0.0
    return rng.normal(centre, scale, weight.shape).astype(np.float32)

  return jax.tree.map_with_path(one, weights(config))


@pytest.fixture(
  params=[
    pytest.param(name, marks=() if name in UNLIKE else pytest.mark.soak)
    for name in sorted(PRESETS)
  ]
)
def recipe(request):
  """Of GRPO and its relatives, by name."""
  return request.param


@pytest.fixture(scope="session")
def toy_config():
  return preset(
    "tiny_deepseek",
    vocab_size=40,
    width=16,
    num_layers=2,
    attention=dict(
      num_heads=2, q_rank=8, kv_rank=8, nope_size=4, rope_size=4, value_size=4
    ),
    dense_width=16,
    experts=dict(width=8, num_routed=4),
  )


@pytest.fixture(scope="session")
def toy(toy_config):
  """(model, parameters)"""
  return transformer.Transformer(toy_config), draw(toy_config)


def save(folder, config, params, letters):
  """The path of a model with a tokenizer of these letters."""
  path = folder / "words" / "tokenizer.model"
  tokenizer.fit([letters] * 3, path, word_share=1.0)
  hf.save(folder / "base", config, params, tokenizer=path.parent, provenance={})
  return str(folder / "base")


@pytest.fixture(scope="session")
def base(toy_config, tmp_path_factory):
  """The toy and its tokenizer, in Hugging Face layout."""
  folder = tmp_path_factory.mktemp("toy")
  return save(folder, toy_config, draw(toy_config), LETTERS)


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
  """Programs that a module compiles twice come from the disk, as in a run."""
  from jax.experimental.compilation_cache import compilation_cache

  names = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
  )
  before = [getattr(jax.config, name) for name in names]
  folder = str(tmp_path_factory.mktemp("xla"))
  for name, value in zip(names, (folder, 0.1, -1)):
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in zip(names, before):
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def load_letters(*, size):
  """Problems that ask for letters; there are two kinds."""
  return [
    Example(f"{'abcdefgh'[i % 8]} {i} ?", "a", f"toy/{'xy'[i % 2]}", str(i))
    for i in range(size)
  ]


def praise(example, completion):
  """The share of the letter a among the tokens: easy to find, easy to earn."""
  return completion.text.count("a") / max(completion.num_tokens, 1)


@pytest.fixture(scope="module")
def toy_task():
  """The dataset "letters" and the reward "praise", by name."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(data.DATASETS, "letters", load_letters)
    patch.setitem(rewards.REWARDS, "praise", rewards.Reward(praise))
    yield


@pytest.fixture(scope="module")
def command(random_params, tmp_path_factory):
  """The command of a run of as small a model as there is; see `job.write`."""
  folder = tmp_path_factory.mktemp("job")
  config = preset(
    "tiny_qwen2", vocab_size=40, width=16, num_layers=1, dense_width=16
  )
  return job.write(
    folder,
    save(folder, config, random_params(config), "abcdefgh 0123456789?\n"),
  )


@pytest.fixture(scope="module")
def make_config(base, toy_task):
  """`make_config(**changes)`: 24 updates on the toy task, 2 a round."""

  def make(**changes):
    c = ml_collections.ConfigDict()
    c.loop = "grpo"
    c.seed = 3
    c.num_steps = 24
    c.template = "plain"
    c.mesh = dict(data=1)
    c.rollout_mesh = dict(data=1)
    c.model = dict(name="pretrained", path=base)
    c.tokenizer = dict(path=base)
    c.dataset = dict(name="letters", size=40)
    c.rewards = dict(praise=1.0, format=0.0)
    c.grader = dict(
      num_workers=1, timeout=60.0, preload=("r1jax.rewards",), canaries=()
    )
    c.prompts_per_round = 4
    c.group_size = 8
    c.minibatches = 2
    c.sampling = dict(
      num_slots=16,
      decode_steps=4,
      prompt_tokens=8,
      max_tokens=8,
      temperature=1.0,
    )
    c.rows = dict(widths=(48,), shard_rows=4)
    c.advantage = dict(name="group_std")
    c.aggregation = dict(name="completion_mean")
    c.loss = dict(
      ratio="token",
      clip=dict(name="symmetric", epsilon=0.2),
      kl="k3",
      kl_coefficient=0.001,
      entropy_coefficient=0.0,
      correction=None,
    )
    c.kl_reward = dict(name="k1", coefficient=0.0)
    c.mask_truncated = False
    c.max_tokens = ()
    c.dynamic_sampling = dict(rounds=0)
    c.old = "sampler"
    c.mtp = "frozen"
    c.reference_every = 16
    c.router_bias_speed = 0.0
    c.teacher = dict()  # None.
    c.offload = ("reference",)
    c.peak_flops = None
    c.cpu_devices = 1
    c.optimizer = dict(
      learning_rate=0.03,
      warmup_steps=2,
      weight_decay=0.01,
    )
    c.max_skipped = 3
    c.checkpoint_every = 8
    c.evaluation = dict(
      every=1000,
      seed=5,
      problems=2,
      samples=2,
      problems_between=2,
      samples_between=2,
      test=dict(name="letters", size=8),
      larger=None,
    )
    c.update_from_flattened_dict(changes)
    return c

  return make
