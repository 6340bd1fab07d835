# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. R1-Zero on one page
#
# A base model that was never given an instruction learns to reason, by
# reinforcement learning alone (DeepSeek-R1, arXiv:2501.12948, section 2.2). The
# model is a real DeepSeek-V3 of 664,064 parameters that is part of the package,
# so all of it runs on two CPU cores in a few minutes.

# %% [markdown]
# On Colab, Kaggle or any other machine without r1jax, this cell installs it; a
# CPU is enough, and a GPU or a TPU is quicker. Elsewhere it only goes to the
# folder that holds `experiments/`.

# %%
import importlib.util
import os
import pathlib
import shutil

if importlib.util.find_spec("r1jax") is None:
  tpus = [*pathlib.Path("/dev").glob("accel*")]
  extra = (
    "gpu" if shutil.which("nvidia-smi") else "tpu" if tpus else "notebooks"
  )
  os.system("git clone THIS_REPOSITORY r1jax")
  os.system(f"pip install -q -e 'r1jax[{extra}]'")
  os.chdir("r1jax")

import r1jax

os.chdir(pathlib.Path(r1jax.__file__).parents[1])
FAST = "R1JAX_FAST" in os.environ  # A few seconds, to try the notebook itself.
# %% [markdown]
# ## The base model
#
# `r1jax.load` opens the shipped model; it also takes a folder in Hugging Face
# layout, or the workdir of a run.

# %%
base = r1jax.load(cpu_devices=1 if FAST else 4)
print(base)

# %% [markdown]
# The experiment says which problems there are: sums, words to spell backward,
# and Countdown. Test problems are never trained on.

# %%
changes = {
  "num_steps": 24,  # The demo has 88 updates.
  "evaluation.every": 24,
  "evaluation.problems": 64,
  "evaluation.samples": 4,
}
if FAST:
  changes |= {
    "num_steps": 2,
    "prompts_per_round": 4,
    "group_size": 4,
    "sampling.num_slots": 16,
    "sampling.prompt_tokens": 128,
    "sampling.max_tokens": 64,
    "loss.kl_coefficient": 0.0,
    "evaluation.problems": 2,
    "evaluation.samples": 2,
  }
config = r1jax.load_config("experiments/demo.py", changes)
config.evaluation.larger = None
limit = config.sampling.max_tokens
tests = r1jax.load_dataset(**config.evaluation.test.to_dict())
problems = [tests[i] for i in range(3)]
for problem in problems:
  print(f"{problem.domain}: {problem.prompt} [{problem.answer}]")

# %% [markdown]
# The template asks the model to think between tags, and no example shows it
# how. Two of its samples for each problem, with the two rewards of R1-Zero:

# %%
samples = base.sample(problems, 2, max_tokens=limit)
scores = r1jax.grade(*samples[:2], accuracy=1.0, format=1.0)
for completion, accuracy in zip(samples.completions, scores.parts["accuracy"]):
  print("right" if accuracy else "wrong", completion.text, sep="  ")

# %% [markdown]
# ## Training
#
# This is `make demo`, with fewer updates. Each round samples a group of
# completions for every prompt, grades them, and makes what is better than its
# group more likely. Run the cell again after a stop, and it goes on.

# %%
workdir = "runs/notebook_1" + "_fast" * FAST
state = r1jax.train(config, workdir)

# %% [markdown]
# ## Before and after
#
# The report is one HTML page, `report.html` in the workdir, with every
# completion. Its figures are files beside it.

# %%
import json

from IPython.display import Image, display

summary = json.loads(pathlib.Path(workdir, "summary.json").read_text())
print(f"{'task':16}{'base':>8}{'R1-Zero':>9}{'tokens':>8}{'then':>6}")
for task, row in summary["tasks"].items():
  print(
    f"{task:16}{row['base_pass_at_1']:8.3f}{row['zero_pass_at_1']:9.3f}"
    f"{row['base_mean_length']:8.0f}{row['zero_mean_length']:6.0f}"
  )

# %%
for name in ("accuracy", "length"):
  display(Image(f"{workdir}/figures/{name}.png", width=720))

# %% [markdown]
# The trained model answers the same problems. `save` writes it in Hugging Face
# layout, for transformers and inference servers.

# %%
zero = r1jax.load(workdir)
samples = zero.sample(problems, 2, max_tokens=limit)
scores = r1jax.grade(*samples[:2], accuracy=1.0, format=1.0)
for completion, accuracy in zip(samples.completions, scores.parts["accuracy"]):
  print("right" if accuracy else "wrong", completion.text, sep="  ")
zero.save(f"{workdir}/exported")

# %% [markdown]
# Next: [GRPO by hand](2_grpo_by_hand.ipynb), what one update does.
