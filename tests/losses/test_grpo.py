"""The objective against the papers' equations, written as loops."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.losses.aggregation import completion_mean
from r1jax.losses.clips import CLIPS
from r1jax.losses.grpo import grpo_loss
from r1jax.losses.kl import KLS
from r1jax.losses.ratios import CORRECTIONS, LEVELS, RATIOS

RNG = np.random.default_rng(1)
LENGTHS = [6, 1, 3, 2, 4, 5]
# Tokens of six completions, one after another.
COMPLETIONS = np.array([c for c, n in enumerate(LENGTHS) for _ in range(n)])
N = len(COMPLETIONS)
WEIGHTS = RNG.uniform(0.5, 1.5, N) / N
WEIGHTS[[2, 17]] = 0.0  # Not the policy's tokens.
ADVANTAGES = np.array([1.5, -1.0, 0.7, 0.0, -0.4, 1.1])[COMPLETIONS]


def draw(scale):
  return -2 + RNG.normal(scale=scale, size=N)


TOKENS = dict(
  logprobs=draw(0.4),
  old_logprobs=draw(0.4),
  reference_logprobs=draw(0.6),
  advantages=ADVANTAGES,
  weights=WEIGHTS,
  completions=COMPLETIONS,
  sampler_logprobs=draw(0.3),
  entropy=RNG.uniform(0, 3, N),
)
PLAIN = dict(
  ratio="token",
  clip=dict(name="symmetric", epsilon=0.2),
  kl="k3",
  kl_coefficient=0.0,
  entropy_coefficient=0.0,
  correction=None,
)


@pytest.fixture(scope="module", autouse=True)
def double_precision():
  with jax.enable_x64(True):
    yield


def run(tokens=TOKENS, **settings):
  """((loss, metrics), gradient with respect to the policy's logprobs)."""
  arrays = {
    key: None if x is None else jnp.asarray(x) for key, x in tokens.items()
  }
  first = ("old_logprobs", "reference_logprobs", "advantages", "weights")
  rest = {key: arrays.pop(key) for key in first}

  def loss(logprobs):
    return grpo_loss(
      logprobs,
      *rest.values(),
      **arrays,
      num_tokens=int(np.sum(WEIGHTS > 0)),
      num_completions=len(LENGTHS),
      **PLAIN | settings,
    )

  return jax.value_and_grad(loss, has_aux=True)(arrays.pop("logprobs"))


def clamp(x, low, high):
  return min(max(x, low), high)


def reference_surrogate(r, a, logprob, frozen, clip):
  """The objective of one token; `frozen` is stop_gradient(r)."""
  name = clip["name"]
  if name == "none":
    return r * a
  low = clip.get("low", clip.get("epsilon"))
  high = clip.get("high", clip.get("epsilon"))
  if name == "cispo":
    return clamp(frozen, 1 - low, 1 + high) * a * logprob
  capped = min(r, clip["delta"]) if name == "two_sided" else r
  return min(capped * a, clamp(r, 1 - low, 1 + high) * a)


def kl_estimate(name, now, old, ref):
  """An estimate of KL(pi || pi_ref) at one token."""
  quotient = math.exp(ref - now)
  k3 = quotient - math.log(quotient) - 1
  return {
    "k1": now - ref,
    "k2": (now - ref) ** 2 / 2,
    "k3": k3,
    "k3_importance": math.exp(now - old) * k3,
  }[name]


def reference_ratios(kind, now, old):
  """The ratio at each token of a completion."""
  quotients = [math.exp(x - y) for x, y in zip(now, old)]
  if kind == "token":
    return quotients
  return [math.prod(quotients) ** (1 / len(now))] * len(now)


def reference_corrections(correction, old, sampler):
  """The correction weight of each token of a completion."""
  if correction is None:
    return [1.0] * len(old)
  rho = [math.exp(x - y) for x, y in zip(old, sampler)]
  if correction["level"] == "sequence":
    rho = [math.prod(rho)] * len(old)
  if correction["name"] == "truncate":
    return [min(x, correction["cap"]) for x in rho]
  low, high = correction["low"], correction["high"]
  return [x if low <= x <= high else 0.0 for x in rho]


def reference_loss(logprobs, frozen, **settings):
  """The loss, token by token; `frozen` is stop_gradient(logprobs)."""
  settings = PLAIN | settings
  arrays = TOKENS | dict(logprobs=logprobs, frozen=frozen)
  total = 0.0
  for c in range(len(LENGTHS)):
    indices = [i for i in range(N) if COMPLETIONS[i] == c and WEIGHTS[i] > 0]
    t = {key: [float(x[i]) for i in indices] for key, x in arrays.items()}
    now, old = t["logprobs"], t["old_logprobs"]
    r = reference_ratios(settings["ratio"], now, old)
    frozen_r = reference_ratios(settings["ratio"], t["frozen"], old)
    rho = reference_corrections(
      settings["correction"], old, t["sampler_logprobs"]
    )
    for k in range(len(indices)):
      a, ref = t["advantages"][k], t["reference_logprobs"][k]
      gain = rho[k] * reference_surrogate(
        r[k], a, now[k], frozen_r[k], settings["clip"]
      )
      kl = kl_estimate(settings["kl"], now[k], old[k], ref)
      total -= t["weights"][k] * (
        gain
        - settings["kl_coefficient"] * kl
        + settings["entropy_coefficient"] * t["entropy"][k]
      )
  return total


def assert_agrees(**settings):
  """Compares the value, and the gradient with finite differences."""
  (value, metrics), gradient = run(**settings)
  value = float(value)
  start = [float(x) for x in TOKENS["logprobs"]]
  assert value == pytest.approx(reference_loss(start, start, **settings))
  for i in range(N):
    ends = []
    for step in (1e-6, -1e-6):
      moved = [x + step * (j == i) for j, x in enumerate(start)]
      ends.append(reference_loss(moved, start, **settings))
    slope = (ends[0] - ends[1]) / 2e-6
    assert gradient[i] == pytest.approx(slope, rel=1e-6, abs=1e-9)
  parts = [x for name, x in metrics.items() if name.startswith("loss/")]
  assert sum(parts) == pytest.approx(value, rel=1e-12)  # What is logged.
  assert np.abs(gradient).max() > 1e-3
  return metrics


EVERY_CLIP = [
  dict(name="none"),
  dict(name="symmetric", epsilon=0.2),
  dict(name="symmetric", epsilon=10.0),
  dict(name="asymmetric", low=0.2, high=0.28),
  dict(name="two_sided", low=0.2, high=0.28, delta=1.5),
  dict(name="cispo", low=0.2, high=0.3),
]
EVERY_CORRECTION = [
  dict(name="truncate", level="token", cap=1.1),
  dict(name="truncate", level="sequence", cap=1.1),
  dict(name="mask", level="token", low=0.7, high=1.3),
  dict(name="mask", level="sequence", low=0.5, high=2.0),
]


def test_every_entry_of_the_tables_is_tested():
  assert {clip["name"] for clip in EVERY_CLIP} == set(CLIPS)
  assert {c["name"] for c in EVERY_CORRECTION} == set(CORRECTIONS)
  assert {c["level"] for c in EVERY_CORRECTION} == set(LEVELS)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("clip", EVERY_CLIP, ids=str)
def test_every_ratio_and_clip_equals_its_equation(ratio, clip):
  assert_agrees(ratio=ratio, clip=clip)


@pytest.mark.parametrize("kl", KLS)
def test_every_kl_equals_its_equation(kl):
  metrics = assert_agrees(kl=kl, kl_coefficient=0.3)
  start = [float(x) for x in TOKENS["logprobs"]]
  with_kl = reference_loss(start, start, kl=kl, kl_coefficient=0.3)
  expected = with_kl - reference_loss(start, start)
  assert metrics["loss/kl"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("correction", EVERY_CORRECTION, ids=str)
def test_every_correction_equals_its_equation(correction):
  """The correction does not affect the KL."""
  metrics = assert_agrees(correction=correction, kl_coefficient=0.2)
  plain = run(kl_coefficient=0.2)[0][1]
  assert metrics["loss/kl"] == plain["loss/kl"]
  assert metrics["loss/policy"] != plain["loss/policy"]


def test_the_entropy_bonus_is_subtracted():
  metrics = assert_agrees(entropy_coefficient=0.01)
  expected = -0.01 * np.sum(WEIGHTS * TOKENS["entropy"])
  assert metrics["loss/entropy"] == pytest.approx(expected)


def test_all_terms_together_are_their_sum():
  assert_agrees(
    ratio="sequence",
    clip=dict(name="two_sided", low=0.1, high=0.1, delta=1.2),
    kl="k3_importance",
    kl_coefficient=0.5,
    entropy_coefficient=-0.1,
    correction=dict(name="mask", level="token", low=0.8, high=1.3),
  )


def test_metrics_are_means_over_tokens_with_a_weight():
  """Whatever the weights are: those of Dr. GRPO do not add up to 1."""
  counted = WEIGHTS > 0
  (_, got), _ = run(
    clip=dict(name="asymmetric", low=0.2, high=0.28),
    correction=dict(name="truncate", level="token", cap=1.1),
  )
  now, old, ref, sampler, a, entropy = (
    TOKENS[key][counted]
    for key in (
      "logprobs",
      "old_logprobs",
      "reference_logprobs",
      "sampler_logprobs",
      "advantages",
      "entropy",
    )
  )
  r, rho = np.exp(now - old), np.exp(old - sampler)
  low, high = (r < 0.8) & (a < 0), (r > 1.28) & (a > 0)
  expected = {
    "ratio/mean": r.mean(),
    "ratio/min": r.min(),
    "ratio/max": r.max(),
    "clip_ratio/low": low.mean(),
    "clip_ratio/high": high.mean(),
    "clip_ratio/region": (low | high).mean(),
    "kl/old": np.mean(r - np.log(r) - 1),
    "kl/old_k1": np.mean(old - now),
    "kl/ref": np.mean(np.exp(ref - now) - (ref - now) - 1),
    "entropy/mean": entropy.mean(),
    "sampling/ratio_mean": rho.mean(),
    "sampling/ratio_max": rho.max(),
    "sampling/ratio_clipped": np.mean(rho > 1.1),
  }
  assert got.keys() - expected.keys() == {"loss/policy"}
  for name, number in expected.items():
    assert got[name] == pytest.approx(number, rel=1e-12), name
  assert 0 < got["clip_ratio/low"] < got["clip_ratio/region"] < 1
  assert 0 < got["sampling/ratio_clipped"] < 1


def test_without_a_reference_there_is_no_kl():
  tokens = TOKENS | dict(reference_logprobs=None, entropy=None)
  (_, metrics), _ = run(tokens)
  absent = {"kl/ref", "loss/kl", "entropy/mean", "loss/entropy"}
  assert not absent & metrics.keys()
  with pytest.raises(ValueError, match="kl_coefficient is 0.1"):
    run(tokens, kl_coefficient=0.1)


def test_on_policy_the_ratio_is_one_the_kl_zero_and_the_gradient_not():
  same = TOKENS["logprobs"]
  tokens = TOKENS | dict(
    old_logprobs=same, reference_logprobs=same, sampler_logprobs=same
  )
  for ratio in RATIOS:
    for clip in EVERY_CLIP[:5]:
      (value, metrics), gradient = run(
        tokens,
        ratio=ratio,
        clip=clip,
        kl_coefficient=0.5,
        correction=EVERY_CORRECTION[1],
      )
      for name in ("ratio/min", "ratio/max", "sampling/ratio_max"):
        assert metrics[name] == 1.0  # Exactly.
      for name in ("kl/ref", "kl/old", "kl/old_k1", "loss/kl"):
        assert metrics[name] == 0.0
      assert metrics["clip_ratio/region"] == 0.0
      assert metrics["sampling/ratio_clipped"] == 0.0
      assert value == pytest.approx(-np.sum(WEIGHTS * ADVANTAGES))
      if ratio == "token":
        np.testing.assert_allclose(gradient, -WEIGHTS * ADVANTAGES, atol=1e-12)


def test_with_weights_that_mean_completions_the_loss_on_policy_is_zero():
  """Although its gradient is not zero."""
  mask = np.arange(6) < np.array([[6, 1, 3]])[..., None]
  a = np.array([[1.0, -0.25, -0.75]])
  weights = completion_mean(mask.sum(-1))[..., None] * mask
  spread = np.broadcast_to(a[..., None], mask.shape)
  same = jnp.asarray(RNG.normal(size=mask.shape))
  arrays = map(jnp.asarray, (spread, weights))
  loss = functools.partial(grpo_loss, num_tokens=10, **PLAIN)
  (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(
    same, same, None, *arrays
  )
  assert value == pytest.approx(0.0, abs=1e-15)
  assert np.abs(gradient).max() > 0.05


def test_a_completion_of_one_token_has_a_gradient():
  _, gradient = run(clip=dict(name="none"))
  assert gradient[np.flatnonzero(COMPLETIONS == 1)[0]] != 0.0


def test_the_length_of_a_sequence_ratio_counts_only_sampled_tokens():
  """Tokens of a tool's output are in the completion but not sampled."""
  tokens = TOKENS | dict(logprobs=TOKENS["old_logprobs"] + 0.3)
  (_, metrics), _ = run(tokens, ratio="sequence")
  assert metrics["ratio/min"] == pytest.approx(math.exp(0.3))
  assert metrics["ratio/max"] == pytest.approx(math.exp(0.3))


def test_the_correction_compares_with_the_sampler_not_with_the_policy():
  """The weights do not change as the policy is updated within a round."""
  correction = EVERY_CORRECTION[3]
  (_, before), _ = run(correction=correction)
  moved = TOKENS | dict(logprobs=TOKENS["logprobs"] + 1.0)
  (_, after), _ = run(moved, correction=correction)
  for name in before:
    if name.startswith("sampling/"):
      assert before[name] == after[name]
  assert before["ratio/mean"] != after["ratio/mean"]


def test_settings_without_the_arrays_they_need_are_refused():
  for absent, settings, words in (
    ("completions", dict(ratio="sequence"), "sequences needs completions"),
    (
      "sampler_logprobs",
      dict(correction=EVERY_CORRECTION[0]),
      "no sampler_logp",
    ),
    ("entropy", dict(entropy_coefficient=0.1), "there is no entropy"),
  ):
    with pytest.raises(ValueError, match=words):
      run(TOKENS | {absent: None}, **settings)
