"""Two processes share the texts of a step, and train as one."""

import json
import pathlib
import sys

import jax
import job
import numpy as np
import pytest

from r1jax.runtime import checkpoint

pytestmark = pytest.mark.cluster

CONFIG = """
from ml_collections import ConfigDict

def get_config():
  return ConfigDict(dict(
    loop="sft",
    seed=1,
    template="{{question}}",
    num_steps=3,
    metrics_every=1,
    checkpoint_every=3,
    cpu_devices=1,
    mesh=dict(data=-1),
    model=dict(name="pretrained", path={base!r}),
    tokenizer=dict(path={base!r}),
    dataset=dict(name="conversations", path={data!r}),
    batch_examples=5,
    rows=dict(widths=(24,), shard_rows=2),
    aggregation=dict(name="token_mean"),
    loss=dict(mtp=0.0, balance=0.0),
    router_bias_speed=0.0,
    offload=(),
    optimizer=dict(learning_rate=0.01),
    teacher=dict(),
    evaluation=dict(
      every=3,
      dataset=dict(name="conversations", path={data!r}),
      examples=7,
    ),
  ))
"""


def test_two_processes_are_one_but_for_rounding(command, tmp_path):
  """They pack the same texts in another order."""
  # The command of a run of GRPO has a model beside its config.
  (config,) = [x for x in command if x.startswith("--config=")]
  text = pathlib.Path(config.removeprefix("--config=")).read_text()
  base = text.split("path='", 1)[1].split("'", 1)[0]
  turns = lambda i: [
    dict(role="user", content=f"{i}?"),
    dict(role="assistant", content="abcdefgh"[: 1 + i % 8] * (1 + i % 3)),
  ]
  data = tmp_path / "data"
  data.mkdir()
  for name, numbers in ("a.jsonl", range(9)), ("b.jsonl", range(9, 23)):
    rows = [json.dumps(dict(messages=turns(i))) for i in numbers]
    (data / name).write_text("\n".join(rows))
  file = tmp_path / "config.py"
  file.write_text(CONFIG.format(base=base, data=str(data)))
  for workdir, processes, devices in (("alone", 1, 2), ("together", 2, 1)):
    flags = f"--config={file}", f"--workdir={tmp_path / workdir}"
    run = [sys.executable, "-m", "r1jax", "train", *flags, "--sinks=jsonl"]
    job.succeeded(job.finish(job.start(run, processes, devices)))
  alone, together = (tmp_path / name for name in ("alone", "together"))
  one, other = job.rows(alone), job.rows(together)
  assert len(one) == len(other) == 4
  for row, same in zip(one, other):
    assert row.keys() == same.keys()
    for name, value in row.items():
      np.testing.assert_allclose(
        value, same[name], rtol=2e-4, atol=1e-6, err_msg=name
      )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    *(checkpoint.load_params(path, "params") for path in (alone, together)),
  )
