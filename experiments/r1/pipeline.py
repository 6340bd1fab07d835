r"""DeepSeek-R1 whole, from a base model to its students, as one program.

    make r1

    r1jax train --config=experiments/r1/pipeline.py:tiny --workdir=runs/r1

    r1jax train --config=experiments/r1/pipeline.py --workdir=/data/r1 \
        --config.given.base=DEEPSEEK_V3_BASE --config.given.problems=FILE \
        --config.given.requests=FILE --config.given.harmful=FILE \
        --config.given.pairs=FILE --config.given.labels=FILE \
        --config.given.others=FOLDER

The stages are those of the paper (arXiv:2501.12948v2, Fig. 2): R1-Zero from the
base; a cold start of the base with readable traces of R1-Zero; reasoning RL;
samples of that model, of which the right ones train the base anew; a reward
model; and RL for all scenarios. Each stage is an experiment of its own, whose
docstring has its numbers and sources.

A stage that has finished is not run again; `--config.only=STAGE` runs one
alone. `r1jax report WORKDIR` compares the models as the paper's Table 3 does.

`given`, which the caller sets, has problems with answers, requests without
(those of helpfulness, and harmful ones), pairs of answers of which one is
preferred, answers that are labelled safe or unsafe, and a folder of
conversations of other domains. The students are six runs of
`experiments/distill.py` on the same samples. Not run but tiny.

`:tiny` takes 40 minutes on two CPU cores, from a base in two languages that is
part of the package, with synthetic problems and requests. It ends with two
dense students, each beside the same student trained by RL alone.

`:smoke` has two steps of each stage, one student and one evaluation: in a few
minutes it shows that everything runs.
"""

import importlib.resources

from ml_collections import ConfigDict

VARIANTS = ("paper", "tiny", "smoke")
R1 = "experiments/r1"


def get_config(variant="paper"):
  """The config of the pipeline."""
  if variant not in VARIANTS:
    raise ValueError(f"unknown variant {variant!r}; there is {VARIANTS}")
  c = ConfigDict()
  c.loop = "pipeline"
  c.only = ""  # All stages.
  if variant == "paper":
    c.cpu_devices = 1  # Not used on a pod.
    names = ("base", "problems", "requests", "harmful", "pairs", "labels")
    c.given = {name: "" for name in (*names, "others")}
    c.stages = paper()
  else:
    c.cpu_devices = 4
    base = importlib.resources.files("r1jax") / "base_r1"
    c.given = dict(base=str(base))
    c.stages = tiny(smoke=variant == "smoke")
  return c


def stage(name, config, inputs, overrides=None):
  """A stage; `model` and the like stand for the paths of these sections."""
  return dict(
    name=name,
    config=config,
    inputs={
      key if key.endswith("path") else f"{key}.path": path
      for key, path in inputs.items()
    },
    overrides=overrides or {},
  )


def paper():
  """The stages at the size of the paper."""
  both = lambda path: dict(model=path, tokenizer=path)
  base, problems = both("given/base"), "given/problems"
  test = {"evaluation.test": problems}
  return (
    stage(
      "zero",
      "experiments/r1_zero.py:long",
      base | test | dict(dataset=problems),
    ),
    stage(
      "cold_start_data",
      f"{R1}/cold_start_data.py",
      both("zero/model") | dict(dataset=problems),
    ),
    stage(
      "cold_start",
      f"{R1}/cold_start.py",
      base | dict(dataset="cold_start_data/kept"),
    ),
    stage(
      "reasoning_rl",
      f"{R1}/reasoning_rl.py",
      both("cold_start/model") | test | dict(dataset=problems),
    ),
    stage(
      "samples",
      f"{R1}/rejection_sampling.py",
      both("reasoning_rl/model") | dict(dataset=problems),
    ),
    stage(
      "sft",
      f"{R1}/sft.py",
      base
      | {
        "dataset.mixture.reasoning": "samples/kept",
        "dataset.mixture.general": "given/others",
      },
    ),
    stage(
      "helpfulness",
      f"{R1}/reward_model.py:helpfulness",
      both("sft/model") | dict(dataset="given/pairs"),
    ),
    stage(
      "safety",
      f"{R1}/reward_model.py:safety",
      both("sft/model") | dict(dataset="given/labels"),
    ),
    stage(
      "all_scenarios",
      f"{R1}/all_scenarios.py",
      both("sft/model")
      | test
      | {
        "dataset.mixture.reasoning": problems,
        "dataset.mixture.helpful": "given/requests",
        "dataset.mixture.harmless": "given/harmful",
        "rewards.helpful.helpfulness": "helpfulness/model",
        "rewards.harmless.safety": "safety/model",
      },
    ),
  )


def tiny(smoke):
  """The stages at the size of a laptop, or of a test if `smoke`."""
  base = dict(model="given/base")
  # What makes a stage of the smoke test short.
  short = {"sampling.max_tokens": 32} if smoke else {}
  few = {"num_steps": 2, "evaluation.problems": 1} if smoke else {}
  steps = {"num_steps": 2} if smoke else {}
  shards = {"dataset.size": 48} if smoke else {}
  tested = {
    f"problems.sets.{name}.count": 1 for name in ("problems", "general")
  }

  def trained(name, config, inputs, overrides):
    """A stage that makes a model, and the evaluation of that model."""
    made = stage(name, config, inputs, overrides)
    evaluated = stage(
      f"{name}_results",
      f"{R1}/evaluation.py:tiny",
      dict(model=f"{name}/model"),
      short | tested if smoke else {},
    )
    once = smoke and name != "all_scenarios"
    return (made,) if once else (made, evaluated)

  base_results = stage("base_results", f"{R1}/evaluation.py:tiny", base)
  students = ("qwen2",) if smoke else ("qwen2", "llama")
  return (
    *(() if smoke else (base_results,)),
    *trained("zero", f"{R1}/zero.py", base, short | few),
    stage(
      "cold_start_data",
      f"{R1}/cold_start_data.py:tiny",
      dict(model="zero/model"),
      short | shards,
    ),
    *trained(
      "cold_start",
      f"{R1}/cold_start.py:tiny",
      base | dict(dataset="cold_start_data/kept"),
      steps,
    ),
    *trained(
      "reasoning_rl",
      f"{R1}/reasoning_rl.py:tiny",
      dict(model="cold_start/model"),
      short | few,
    ),
    stage(
      "samples",
      f"{R1}/rejection_sampling.py:tiny",
      dict(model="reasoning_rl/model"),
      short | shards,
    ),
    *trained(
      "sft",
      f"{R1}/sft.py:tiny",
      base | {"dataset.mixture.reasoning": "samples/kept"},
      steps,
    ),
    stage(
      "helpfulness",
      f"{R1}/reward_model.py:tiny",
      dict(model="sft/model"),
      steps,
    ),
    *trained(
      "all_scenarios",
      f"{R1}/all_scenarios.py:tiny",
      dict(model="sft/model")
      | {"rewards.general.helpfulness": "helpfulness/model"},
      short | few,
    ),
    *(
      each
      for student in students
      for each in (
        stage(
          f"{student}_base",
          f"{R1}/base.py:{student}",
          dict(tokenizer="given/base"),
          steps,
        ),
        *trained(
          f"{student}_distilled",
          "experiments/distill.py:tiny",
          dict(model=f"{student}_base/model")
          | {"dataset.mixture.reasoning": "samples/kept"},
          steps,
        ),
        *trained(
          f"{student}_zero",
          f"{R1}/zero.py",
          dict(model=f"{student}_base/model"),
          short | few if smoke else {"num_steps": 44, "evaluation.every": 44},
        ),
      )
    ),
  )
