"""The loop on a toy task as a command, for several processes to run."""

import json
import os
import pathlib
import socket
import subprocess
import sys

from trees import assert_same

from r1jax.runtime import checkpoint

ROOT = pathlib.Path(__file__).parents[2]

# `r1jax train`, with a task and a reward that a toy learns in seconds.
DRIVER = """
import os, random, signal, sys, threading
import jax
from r1jax import data, rewards
from r1jax.runtime import checkpoint, interrupt
from r1jax.tools import train
from r1jax.training import round_numbers
from r1jax.training.log import RunLog
from r1jax.types import Example

def letters(*, size):
  answer = os.environ.get("LETTER", "a")
  return [
    Example(f"{'abcdefgh'[i % 8]} {i} ?", answer, f"toy/{'xy'[i % 2]}", str(i))
    for i in range(size)
  ]

def praise(example, completion):
  when = os.environ.get("FAIL", "")  # "kind:host:prompt id"
  kind, _, rest = when.partition(":")
  if rest == f"{jax.process_index()}:{example.id}":
    if kind == "kill":
      # What was saved two rounds ago is durable by now, on any machine.
      for manager in sum(checkpoint._WRITERS.values(), []):
        manager.wait_until_finished()
      open(os.environ["DIED"], "w").close()
      os.kill(os.getpid(), signal.SIGKILL)
    if kind == "term" and not interrupt.received():
      os.kill(os.getpid(), signal.SIGTERM)
    if kind == "leave":
      raise SystemExit("a host that gives up")
  return completion.text.count("a") / max(completion.num_tokens, 1)

def deadly(act, moment=None):
  # The process may not survive `act`; FAIL is "kill:host:moment:count".
  def perform(first, *args, **kwargs):
    now = moment or args[0]
    met.append(now)
    when = f"kill:{jax.process_index()}:{now}:{met.count(now)}"
    if os.environ.get("FAIL") == when:
      wait = random.uniform(0, 0.03)
      threading.Timer(wait, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return act(first, *args, **kwargs)

  return perform

met = []
round_numbers.REFLECTION = ("think", "answer")  # The toy says them.
RunLog.phase = deadly(RunLog.phase)
checkpoint.save = deadly(checkpoint.save, "saving")
data.DATASETS["letters"] = letters
rewards.REWARDS["praise"] = rewards.Reward(praise)
train.run("python -m r1jax train")
"""

CONFIG = """
from ml_collections import ConfigDict

def get_config():
  return ConfigDict(dict(
    loop="grpo",
    seed=3,
    num_steps=4,
    template="plain",
    mesh=dict(data=-1, fsdp=1, expert=1, context=1, num_slices=1),
    rollout_mesh=dict(data=-1, expert=1),
    model=dict(name="pretrained", path={base!r}),
    tokenizer=dict(path={base!r}),
    dataset=dict(name="letters", size=40),
    rewards=dict(praise=1.0, format=0.0),
    grader=dict(
      num_workers=1, timeout=60.0, preload=("r1jax.rewards",), canaries=()
    ),
    prompts_per_round=4,
    group_size=4,
    minibatches=1,
    sampling=dict(
      num_slots=8,
      decode_steps=4,
      prompt_tokens=8,
      max_tokens=8,
      temperature=1.0,
    ),
    rows=dict(widths=(48,), shard_rows=1),
    advantage=dict(name="group_std"),
    aggregation=dict(name="completion_mean"),
    loss=dict(
      ratio="token",
      clip=dict(name="symmetric", epsilon=0.2),
      kl="k3",
      kl_coefficient=0.001,
      entropy_coefficient=0.0,
      correction=None,
    ),
    kl_reward=dict(name="k1", coefficient=0.0),
    mask_truncated=False,
    max_tokens=(),
    dynamic_sampling=dict(rounds=0),
    old="sampler",
    mtp="frozen",
    reference_every=2,
    router_bias_speed=0.0,
    teacher=dict(),
    offload=(),
    peak_flops=None,
    cpu_devices=1,
    optimizer=dict(
      learning_rate=0.03,
      warmup_steps=2,
      weight_decay=0.01,
    ),
    max_skipped=3,
    checkpoint_every=2,
    evaluation=dict(
      every=1000,
      seed=5,
      problems=2,
      samples=2,
      problems_between=2,
      samples_between=2,
      test=dict(name="letters", size=8),
      larger=None,
    ),
  ))
"""


def write(folder: pathlib.Path, base: str) -> list[str]:
  """The command of a run, without its workdir; its files are in `folder`."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "driver.py").write_text(DRIVER)
  (folder / "config.py").write_text(CONFIG.format(base=base))
  return [
    sys.executable,
    str(folder / "driver.py"),
    f"--config={folder / 'config.py'}",
    "--sinks=jsonl",
  ]


def environment(devices: int, **more: str) -> dict[str, str]:
  """That of a process with so many devices."""
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  env |= dict(
    PYTHONPATH=str(ROOT),
    PYTHONUNBUFFERED="1",
    JAX_PLATFORMS="cpu",
    JAX_NUM_CPU_DEVICES=str(devices),
  )
  return env | more


def start(command: list[str], processes: int, devices: int, **env: str):
  """Starts a job on this machine, which hears itself alone."""
  flags = []
  if processes > 1:
    with socket.create_server(("127.0.0.1", 0)) as free:
      address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = [f"--coordinator_address={address}", f"--num_processes={processes}"]
    env["JAX_COORDINATOR_BIND_ADDRESS"] = address
  return [
    subprocess.Popen(
      [*command, *flags, *([f"--process_id={i}"] if flags else [])],
      env=environment(devices, **env),
      cwd=ROOT,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(processes)
  ]


def finish(job, timeout=150) -> list[tuple[int, str, str]]:
  """Exit code, output and errors of every process; none is left behind."""
  try:
    outputs = [process.communicate(timeout=timeout) for process in job]
  finally:
    for process in job:
      process.kill()
  return [(p.returncode, *output) for p, output in zip(job, outputs)]


def rows(workdir) -> list[dict]:
  """The rows of a run, without what depends on the clock."""
  lines = (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
  return [
    {
      k: v
      for k, v in json.loads(line).items()
      if k != "time" and not k.startswith("perf/")
    }
    for line in lines
  ]


def succeeded(ended):
  """What `finish` returned, if no process failed."""
  for code, _, errors in ended:
    assert code == 0, errors[-3000:]
  return ended


def assert_same_params(one, other):
  """Asserts that the last parameters of two workdirs are equal bit for bit."""
  assert_same(checkpoint.load_params(one), checkpoint.load_params(other))
