"""One GRPO step, compared with TRL and Tunix and with a floor of FLOPs.

    python -m benchmarks.grpo --prompt=32 --completion=128 \\
      --peers --trl_python=.trl/bin/python --tunix_python=.tunix/bin/python

A step samples `group_size` completions of each of `prompts` prompts, scores
them under a reference policy, and makes one AdamW update with the k3 KL, with
the functions of the training loop. The completions of a prompt share its cache.
No token ends them, so all have full length. The model is a tiny Qwen2 with the
sizes of the peers' scripts, or a tiny DeepSeek-V3, which the peers lack.

`floor_s` is the time of the matmuls alone: decoding at the rate of this machine
for matmuls of 64 rows; prompts, scoring and update at its rate for 2,048 rows.
A prompt counts once per group. Work that not every implementation does (the
same prompt again, masked scores, rematerialisation) does not count.
"""

import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import command, peer_scripts, timing
from benchmarks.model import MODELS, mesh_for
from r1jax.losses.advantages import advantages
from r1jax.losses.presets import PRESETS
from r1jax.models import flops, transformer
from r1jax.models.config import ModelConfig, replace
from r1jax.parallel import sharding
from r1jax.parallel.mesh import row_shards
from r1jax.rollouts.engine import make_engine
from r1jax.training.batch import make_batch, pack_prompts, weigh_batches
from r1jax.training.policy import reference_copy
from r1jax.training.run import make_steps
from r1jax.training.update import init_state

RECIPE = PRESETS["grpo"]
KL_COEFFICIENT = 0.001
OPTIMIZER = dict(learning_rate=1e-5, b2=0.999)
PHASES = "generation_s", "scoring_s", "update_s"
EQUAL = 0.02  # The tolerance for equal numbers of tokens on two sides.


class Size(NamedTuple):
  """The sizes of a step; lengths are in tokens."""

  prompts: int
  group_size: int
  prompt: int
  completion: int

  @property
  def sampled(self) -> int:
    """The number of sampled tokens."""
    return self.prompts * self.group_size * self.completion


@dataclasses.dataclass(frozen=True)
class Endless:
  """A character tokenizer without an EOS that the model could sample."""

  vocab_size: int
  eos_ids: tuple[int, ...] = (-1,)
  prefix_ids: tuple[int, ...] = ()

  def encode(self, text: str) -> list[int]:
    """The code points of the characters, modulo the vocabulary size."""
    return [ord(character) % self.vocab_size for character in text]

  def decode(self, ids: Sequence[int]) -> str:
    """The characters of those code points."""
    return "".join(map(chr, ids))


def grpo(
  *,
  prompt: int = 32,
  completion: int = 128,
  prompts: int = 8,
  group_size: int = 8,
  model: str = "qwen2",
  width: int = 256,
  layers: int = 4,
  steps: int = 5,
  turns: int = 2,
  completions_per_row: int = 0,
  microbatch_rows: int = 0,
  peers: bool = False,
  bench_dir: str | None = None,
  trl_python: str | None = None,
  tunix_python: str | None = None,
  peer_timeout: float = 900.0,
) -> dict:
  """Median seconds of a step and its phases, the floor, and the peers' times.

  Args:
    prompt: tokens of a prompt.
    completion: tokens of a completion.
    prompts: number of prompts of a step.
    group_size: completions per prompt.
    model: a name in MODELS.
    width: of the model; the feed-forward width is 4 times as large.
    layers: of the model.
    steps: number of timed steps in every turn.
    turns: number of turns between us and the peers; without peers, 1.
    completions_per_row: completions in a packed row; 0 uses `best_rows`.
    microbatch_rows: rows that go through the model at once; 0 uses `best_rows`.
    peers: whether to time the peers.
    bench_dir: folder of the peers' scripts; see `peer_scripts.find`.
    trl_python: interpreter with TRL.
    tunix_python: interpreter with Tunix.
    peer_timeout: seconds for one run of a peer, with its start.
  """
  if peers and model != "qwen2":
    raise ValueError(f"the peers have nothing to time beside {model}")
  size = Size(prompts, group_size, prompt, completion)
  sizes = sized(model, width, layers)
  others = (
    peer_scripts.find(bench_dir, trl=trl_python, tunix=tunix_python)
    if peers
    else {}
  )
  machine = timing.machine()
  rows = best_rows(size)
  rows = rows_of(
    size,
    completions_per_row or rows["completions_per_row"],
    microbatch_rows or rows["microbatch_rows"],
  )
  running = train(sizes, size, rows)
  log("compiling ...")
  for _ in range(2):  # The second step may still compile something.
    next(running)
  ours, theirs = [], {name: [] for name in others}
  for turn in range(turns if peers else 1):
    time.sleep(timing.PAUSE)
    for _ in range(steps):
      ours.append(next(running))
    log(f"turn {turn + 1}: {median(ours, 'step_s'):.2f} s a step")
    for name, script in others.items():
      time.sleep(timing.PAUSE)
      log(f"  {name} ...")
      arguments = size._asdict() | dict(width=width, layers=layers)
      theirs[name].append(
        peer_scripts.run(
          script, arguments | dict(steps=steps + 1), timeout=peer_timeout
        )
      )
  step = {key: round(median(ours, key), 4) for key in ("step_s", *PHASES)}
  floor = floors(sizes, size, machine)
  return {
    "machine": machine,
    "model": model,
    "size": size._asdict() | dict(width=width, layers=layers),
    "rows": rows,
    **step,
    "steps": len(ours),
    "sampled_tokens": size.sampled,
    "sampled_tokens_per_s": round(size.sampled / step["step_s"]),
    "peak_memory_bytes": timing.peak_memory(),
    **floor,
    "ratio_to_floor": round(step["step_s"] / floor["floor_s"], 2),
    "peers": {
      name: compare(runs, size, step["step_s"]) for name, runs in theirs.items()
    },
  }


def sized(model: str, width: int, layers: int) -> ModelConfig:
  """One of MODELS with this width and depth.

  The head size scales with the width. The Qwen2 ties its embeddings, like those
  of the peers.
  """
  config = MODELS[model]
  overrides = dict(width=width, dense_width=4 * width, num_layers=layers)
  if model == "qwen2":
    attention = dict(head_size=width // config.attention.num_heads)
    overrides |= dict(tied=True, attention=attention)
  return replace(config, **overrides)


def settings(size: Size, rows: dict) -> ConfigDict:
  """The config sections that a step reads, with the recipe of GRPO."""
  return ConfigDict(
    dict(
      prompts_per_round=size.prompts,
      group_size=size.group_size,
      sampling=dict(
        num_slots=size.prompts * size.group_size,
        decode_steps=size.completion,
        prompt_tokens=size.prompt,
        max_tokens=size.completion,
        temperature=1.0,
      ),
      rows=rows,
      advantage=RECIPE["advantage"],
      aggregation=RECIPE["aggregation"],
      loss=RECIPE["loss"] | dict(kl_coefficient=KL_COEFFICIENT),
      optimizer=OPTIMIZER,
      mtp="frozen",
      router_bias_speed=0.0,
    )
  )


def train(sizes: ModelConfig, size: Size, rows: dict) -> Iterator[dict]:
  """An endless iterator over steps: the seconds of each and of its phases."""
  count = rows["microbatch_rows"]
  mesh, tokenizer = mesh_for(size.prompts, count), Endless(sizes.vocab_size)
  shard_rows = count // row_shards(mesh)
  section = dict(widths=rows["widths"], shard_rows=shard_rows)
  config = settings(size, section)
  model = transformer.Transformer(sizes)
  engine = make_engine(model, tokenizer, mesh, (), **config.sampling)
  optimizer, score, update = make_steps(config, model, tokenizer)
  params = transformer.init(model, jax.random.key(0))
  reference = sharding.replicate(mesh, reference_copy(sizes, params))
  state = sharding.replicate(mesh, init_state(params, optimizer))
  all_prompts = np.arange(size.prompts)

  for round in itertools.count():
    started = time.perf_counter()
    rollout = engine(
      engine.prepare(state.params),
      draw(sizes, size, round),
      size.group_size,
      seed=0,
      round=round,
    )
    if (rollout.lengths != size.completion).any():
      raise RuntimeError("a completion ended early, though no id ends it")
    sampled = time.perf_counter()

    placements = pack_prompts(rollout, all_prompts, mesh, **config.rows)
    batches = [make_batch(rollout, x, mesh) for x in placements]
    with jax.set_mesh(mesh):
      batches = [
        batch.replace(reference_logprobs=score(reference, batch))
        for batch in batches
      ]
    jax.block_until_ready(batches)
    scored = time.perf_counter()

    # Any reward that differs within a group works.
    total = (rollout.completions % 2).mean(axis=-1)
    weighed = weigh_batches(
      batches,
      rollout.sampled_mask.sum(-1),
      np.isfinite(total),
      advantages(total, **config.advantage),
      **config.aggregation,
    )
    with jax.set_mesh(mesh):
      state, measured = update(state, weighed)
    jax.device_get(measured)
    learned = time.perf_counter()
    yield dict(
      step_s=learned - started,
      generation_s=sampled - started,
      scoring_s=scored - sampled,
      update_s=learned - scored,
    )


def draw(config: ModelConfig, size: Size, round: int) -> list[list[int]]:
  """Random prompts [P][T], the same in every run."""
  rng = np.random.default_rng((0, round))
  shape = size.prompts, size.prompt
  return rng.integers(0, config.vocab_size, shape).tolist()


def best_rows(size: Size) -> dict:
  """The packing that was fastest on two CPU cores."""
  if size.prompt > size.completion:
    return dict(completions_per_row=4, microbatch_rows=2)
  return dict(completions_per_row=2, microbatch_rows=8)


def rows_of(size: Size, completions: int, microbatch_rows: int) -> dict:
  """The width and number of packed rows for this number of completions."""
  completions = min(completions, size.group_size)
  count = size.prompts * -(-size.group_size // completions)
  microbatch_rows = min(microbatch_rows, count)
  return dict(
    widths=(size.prompt - 1 + completions * size.completion,),
    microbatch_rows=microbatch_rows,
  )


class Work(NamedTuple):
  """The model FLOPs of a step."""

  prefill: float  # Of each prompt once, before decoding.
  decoding: float
  forward: float  # Of the packed rows; the gradient takes twice as many.


def work(sizes: ModelConfig, size: Size) -> Work:
  """The model FLOPs of the parts of a step, with causal attention."""
  token, logits = flops.of_token(sizes), flops.of_logits(sizes)
  pair = flops.of_pair(sizes)
  # The last token of a prompt is decoded with each completion.
  head = size.prompt - 1
  prefill = size.prompts * (head * token + head * (head + 1) / 2 * pair)
  # Pairs of a completion: its tokens see the prompt and the tokens before.
  seen = size.completion * (size.prompt + (size.completion - 1) / 2)
  pairs = size.prompts * size.group_size * seen
  sampled = size.sampled * (token + logits)
  return Work(
    prefill=prefill,
    decoding=sampled + pairs * flops.of_pair(sizes, cached=True),
    forward=prefill + sampled + pairs * pair,
  )


def floors(sizes: ModelConfig, size: Size, machine: dict) -> dict:
  """The seconds of the matmuls of a step at the machine's rates."""
  flops_of = work(sizes, size)
  rate = lambda rows: machine[f"matmul_{rows}_gflops"] * 1e9
  # Scoring takes one forward pass, and the update takes three.
  rest = (flops_of.prefill + 4 * flops_of.forward) / rate(timing.PEAK_ROWS)
  decoding = flops_of.decoding / rate(timing.DECODE_ROWS)
  return {
    "floor_s": round(decoding + rest, 4),
    "floor_decode_s": round(decoding, 4),
    "floor_rest_s": round(rest, 4),
  }


def compare(runs: Sequence[dict], size: Size, step_s: float) -> dict:
  """The median step of a peer over all its runs, and its ratio to ours."""
  if failed := [run["error"] for run in runs if "error" in run]:
    return {"error": failed[0]}
  times = [taken for run in runs for taken in run["times"]]
  tokens = statistics.mean(run["mean_length"] for run in runs)
  tokens *= size.prompts * size.group_size
  theirs = statistics.median(times)
  return {
    "step_s": round(theirs, 4),
    "steps": len(times),
    "sampled_tokens": round(tokens),
    "equal_tokens": abs(tokens / size.sampled - 1) <= EQUAL,
    "ratio": round(theirs / step_s, 2),
  }


def median(steps: Sequence[dict], key: str) -> float:
  """The median of one phase over the steps."""
  return statistics.median(step[key] for step in steps)


def log(text: str) -> None:
  """Prints progress to standard error."""
  print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
  command.run(grpo)
