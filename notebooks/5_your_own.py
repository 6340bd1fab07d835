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
# # 5. Your own data, reward and template
#
# From a file of problems to a model that transformers can load. Nothing in the
# package is edited.

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
# ## Data
#
# A line is a problem: JSON with a question and an answer. Field names of
# published data sets are known; `fields` names others.

# %%
import json
import random

folder = pathlib.Path("runs/notebook_5" + "_fast" * FAST)
shutil.rmtree(folder, ignore_errors=True)
folder.mkdir(parents=True)
rng = random.Random(0)
with open(folder / "sums.jsonl", "w") as file:
  for _ in range(400):
    numbers = [rng.randint(1, 9) for _ in range(4)]
    row = {"question": " + ".join(map(str, numbers)) + " ="}
    file.write(json.dumps(row | {"answer": str(sum(numbers))}) + "\n")
problems = dict(
  name="problems", path=str(folder / "sums.jsonl"), domain="math/mine"
)
train = r1jax.load_dataset(**problems, split="train")
test = r1jax.load_dataset(**problems, split="test")
print(len(train), len(test), test[0])

# %% [markdown]
# ## Reward
#
# A module beside the data. Its functions get an example and a completion, and
# return a number. They run in other processes, which may be killed.

# %%
(folder / "my_rewards.py").write_text('''
def steps(example, completion):
  """The share of the problem's numbers that the thought adds up."""
  thought = completion.text.partition("</think>")[0]
  terms = example.prompt.count("+")
  return min(thought.count("="), terms) / terms
''')

import sys

sys.path.append(str(folder))

# %% [markdown]
# ## Template
#
# A text with `{question}` in it. What it writes of the answer, here an opened
# thought, is the prefill.

# %%
TEMPLATE = (
  "A conversation between User and Assistant. The assistant thinks between "
  "<think> and </think>, and answers between <answer> and </answer>. "
  "User: {question}. Assistant: <think>"
)
LIMIT = 48 if FAST else 96  # Tokens of a completion.
model = r1jax.load(cpu_devices=1 if FAST else 4)
samples = model.sample(test[:2], template=TEMPLATE, max_tokens=LIMIT)
scores = r1jax.grade(
  *samples[:2], accuracy=1.0, format=1.0, **{"my_rewards:steps": 0.2}
)
for completion, total in zip(samples.completions, scores.total):
  print(f"{total:.2f}  {completion.text}")

# %% [markdown]
# ## Train
#
# A config begins with another one. The doctor (`r1jax doctor`) tries one round
# of a config before a long run.

# %%
changes = {"num_steps": 16, "checkpoint_every": 8, "sampling.max_tokens": LIMIT}
if FAST:
  changes |= {
    "num_steps": 2,
    "prompts_per_round": 4,
    "group_size": 4,
    "sampling.num_slots": 16,
    "sampling.prompt_tokens": 64,
    "loss.kl_coefficient": 0.0,
  }
config = r1jax.load_config("experiments/demo.py", changes)
config.template = TEMPLATE
config.dataset = dict(**problems, split="train")
config.rewards = {"accuracy": 1.0, "format": 1.0, "my_rewards:steps": 0.2}
config.evaluation.update(every=16, problems=8 if FAST else 40, samples=4)
config.evaluation.test = dict(**problems, split="test")
config.evaluation.larger = None
state = r1jax.train(config, str(folder / "run"))

# %%
import matplotlib.pyplot as plt

plt.rcParams |= {"figure.dpi": 80, "font.size": 10, "axes.grid": True}
rounds = [r for r in r1jax.read_metrics(folder / "run") if "round" in r]
figure, ax = plt.subplots(figsize=(5, 2.8), constrained_layout=True)
for name in ("accuracy", "format", "steps"):
  ax.plot(
    [row["step"] for row in rounds],
    [row[f"reward/{name}/mean"] for row in rounds],
    ".-",
    label=name,
  )
ax.set(xlabel="updates", ylabel="mean of the reward", ylim=(0, 1.05))
ax.legend()
plt.show()
# %% [markdown]
# ## Evaluate, and export
#
# `evaluate` gives the metrics of each task. `save` writes Hugging Face layout.

# %%
trained = r1jax.load(folder / "run")
few = test[: 4 if FAST else 20]
for name, each in (("base", model), ("trained", trained)):
  row = each.evaluate(few, 4, max_tokens=LIMIT, template=TEMPLATE)["mine"]
  print(f"{name:8} pass@1 {row['pass@1']:.2f}  pass@4 {row['pass@4']:.2f}")
trained.save(folder / "exported")
print(sorted(path.name for path in (folder / "exported").iterdir()))

# %% [markdown]
# ```python
# import transformers
#
# transformers.AutoModelForCausalLM.from_pretrained("exported")
# ```
#
# Next: [reading a run](6_reading_a_run.ipynb).
