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
# # 2. GRPO by hand
#
# One batch, small enough to see: rewards, advantages, ratios, clips and the KL,
# and what each published recipe makes of the same tokens. The equations are
# those of DeepSeekMath (arXiv:2402.03300) and its relatives; `r1jax/losses/`
# has one function for each.

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
# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from r1jax.losses.advantages import ADVANTAGES
from r1jax.losses.aggregation import token_weights
from r1jax.losses.clips import CLIPS
from r1jax.losses.grpo import grpo_loss
from r1jax.losses.kl import KLS
from r1jax.losses.presets import PRESETS

plt.rcParams |= {"figure.dpi": 80, "font.size": 10, "axes.grid": True}
plt.rcParams |= {"grid.alpha": 0.3, "figure.constrained_layout.use": True}

# %% [markdown]
# ## A batch
#
# Four prompts with a group of eight completions each. A completion earns 1 for
# the right answer and 1 for the format.

# %%
P, G, LIMIT = (2, 4, 48) if FAST else (4, 8, 160)
model = r1jax.load()
config = r1jax.load_config(
  "experiments/demo.py",
  {
    "prompts_per_round": P,
    "group_size": G,
    "sampling.max_tokens": LIMIT,
    "optimizer.warmup_steps": 0,
    "optimizer.learning_rate": 1e-3,  # Large, so that one step shows.
  },
)
data = r1jax.load_dataset(**config.dataset.to_dict())
prompts = [data[i] for i in range(P)]
samples = model.sample(prompts, G, max_tokens=LIMIT)
scores = r1jax.grade(*samples[:2], accuracy=1.0, format=1.0)
rewards = scores.total.reshape(P, G)
print(rewards)

# %% [markdown]
# ## Advantages
#
# A completion is compared with its group, and with nothing else. GRPO divides
# by the standard deviation, so that easy and hard prompts count alike; Dr. GRPO
# does not; RLOO leaves the completion itself out of the mean. A group whose
# rewards are all equal teaches nothing: its advantages are exactly 0.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 2.6))
for ax, (name, function) in zip(axes, ADVANTAGES.items()):
  values = function(rewards)
  ax.imshow(values, cmap="RdBu", vmin=-2.5, vmax=2.5)
  for place, value in np.ndenumerate(values):
    ax.text(*place[::-1], f"{value:.1f}", ha="center", va="center", fontsize=8)
  ax.set(title=name, xlabel="completion", ylabel="prompt", xticks=range(G))
  ax.grid(False)
plt.show()

# %% [markdown]
# ## One update
#
# `r1jax.learner` holds the model, its optimizer and the reference policy. An
# update returns another learner, and the metrics of the step.

# %%
learner = r1jax.learner(model, config)
after, metrics = learner.update(samples, scores.total)
for name in ("loss/total", "ratio/max", "kl/ref", "optim/grad_norm"):
  print(f"{name:18}{metrics[name]:10.5f}")

# %% [markdown]
# On the first update, policy and sampler are the same: every ratio is 1, and
# the loss is 0 up to rounding; only its gradient matters. After it, ratios have
# moved. Tokens are not pushed alone: all of them share the same weights.

# %%
rollout = samples.rollout
mask = np.asarray(rollout.sampled_mask)
old = np.asarray(rollout.logprobs)
new = after.model.score(rollout)
advantages = ADVANTAGES["group_std"](rewards)
ratio = np.exp(new - old)
per_token = np.broadcast_to(advantages[..., None], mask.shape)

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
for sign, color in ((1, "tab:blue"), (-1, "tab:red")):
  chosen = ratio[mask & (np.sign(per_token) == sign)]
  label = f"advantage {'above' if sign > 0 else 'below'} 0"
  left.hist(chosen, 40, range=(0.5, 1.5), color=color, alpha=0.6, label=label)
left.axvspan(0.8, 1.2, color="gray", alpha=0.15, label="not clipped")
left.set(xlabel="ratio after one update", ylabel="tokens", yscale="log")
left.legend(fontsize=8)
place = np.unravel_index(np.argmax(np.abs(advantages)), advantages.shape)
length = int(rollout.lengths[place])
right.plot(ratio[place][:length], ".-")
right.axhline(1, color="gray")
right.set(
  title=f"one completion, advantage {advantages[place]:.1f}",
  xlabel="token",
  ylabel="ratio",
)
print(samples.completions[place[0] * G + place[1]].text)
plt.show()

# %% [markdown]
# ## Clips
#
# The surrogate that a token adds, against its ratio, for an advantage of 1 and
# of -1. Where the curve is flat the token has no gradient. R1's epsilon of 10
# clips only ratios above 11.

# %%
settings = {
  "none": {},
  "symmetric": dict(epsilon=0.2),
  "asymmetric": dict(low=0.2, high=0.28),
  "two_sided": dict(low=0.2, high=0.28, delta=3.0),
  "cispo": dict(low=1.0, high=1.5),
}
r = jnp.linspace(0.05, 4, 400)
figure, axes = plt.subplots(1, 2, figsize=(9, 3))
for ax, advantage in zip(axes, (1.0, -1.0)):
  for name, arguments in settings.items():
    clip = lambda logprob, c=name, a=advantage, k=arguments: (
      CLIPS[c](jnp.exp(logprob), jnp.asarray(a), logprob, **k).surrogate
    )
    ax.plot(r, jax.vmap(jax.grad(clip))(jnp.log(r)), label=name)
  ax.set(xlabel="ratio", title=f"gradient by log p, advantage {advantage:.0f}")
axes[0].legend(fontsize=8)
plt.show()
# %% [markdown]
# ## The KL
#
# Three estimates of the KL to the reference from one sampled token, by how much
# likelier the reference finds it. k3, which GRPO uses, is never negative.

# %%
x = jnp.linspace(-2, 2, 200)
plt.figure(figsize=(5, 3))
for name in ("k1", "k2", "k3"):
  plt.plot(x, KLS[name](x, jnp.ones_like(x)), label=name)
plt.xlabel("log reference - log policy, nats")
plt.ylabel("nats")
plt.legend()
plt.show()
# %% [markdown]
# ## Each recipe on the same tokens
#
# A recipe is an advantage, a weight of tokens, a ratio, a clip and a KL. The
# policy is the one after the update. Below: the gradient that each token's
# log-probability gets, summed over each completion, by recipe. Dr. GRPO and
# RLOO weigh long completions more; GSPO clips whole completions.

# %%
tokens = mask.sum(-1)
trained = np.ones_like(tokens, bool)
completions = np.broadcast_to(np.arange(P * G).reshape(P, G, 1), mask.shape)
on_tokens = lambda x: jnp.asarray(
  np.where(mask, x[..., None], 0.0), jnp.float32
)
rows = {}
recipes = dict([*PRESETS.items()][: 2 if FAST else None])
for name, recipe in recipes.items():
  advantage = dict(recipe["advantage"])
  values = ADVANTAGES[advantage.pop("name")](rewards, **advantage)
  weights = token_weights(tokens, trained, **recipe["aggregation"])
  loss = lambda logprobs, a=values, w=weights, k=recipe["loss"]: grpo_loss(
    logprobs,
    jnp.asarray(old),
    jnp.asarray(old),
    on_tokens(a),
    on_tokens(w),
    int(tokens.sum()),
    completions=jnp.asarray(completions),
    num_completions=P * G,
    **k,
  )[0]
  gradient = -np.asarray(jax.grad(loss)(jnp.asarray(new)))
  rows[name] = gradient.sum(-1).reshape(-1)

# %%
figure, ax = plt.subplots(figsize=(9, 3.2))
table = np.stack([row / (np.abs(row).max() or 1) for row in rows.values()])
image = ax.imshow(table, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
ax.set_yticks(range(len(rows)), rows)
ax.set(xlabel="completion, group after group", title="push on a completion")
ax.grid(False)
for edge in range(G, P * G, G):
  ax.axvline(edge - 0.5, color="black", linewidth=0.8)
figure.colorbar(image, label="of the recipe's largest")
plt.show()

# %% [markdown]
# A run with another recipe is one word:
# `r1jax.load_config("experiments/demo.py:dapo")`.
#
# Next: [inside the model](3_inside_the_model.ipynb).
