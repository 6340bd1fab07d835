"""Mistakes in the settings of the loss are found before training."""

import pytest

from r1jax.losses.grpo import check

PLAIN = dict(
  ratio="token",
  clip=dict(name="symmetric", epsilon=0.2),
  kl="k3",
  kl_coefficient=0.0,
  entropy_coefficient=0.0,
  correction=None,
)
WRONG = [
  (dict(ratio="tokens"), "unknown ratio 'tokens'; did you mean 'token'"),
  (dict(kl="k4"), "unknown kl 'k4'; there is k1, k2, k3"),
  (
    dict(clip=dict(name="asymetric", low=1)),
    "unknown clip 'asymetric'.*'asymmetric'",
  ),
  (dict(clip=dict(epsilon=0.2)), "clip has no 'name'"),
  (
    dict(clip=dict(name="symmetric", epsilonn=0.2)),
    "clip 'symmetric': 'epsilonn'; did you mean 'epsilon'",
  ),
  (
    dict(clip=dict(name="asymmetric", low=0.2)),
    "'asymmetric' needs the key 'high'",
  ),
  (dict(clip=dict(name="symmetric", epsilon=0.0)), "epsilon is 0.0"),
  (
    dict(clip=dict(name="two_sided", low=0.2, high=0.2, delta=1.0)),
    "delta is 1.0, but must be above 1 . high, 1.2",
  ),
  (dict(correction=dict(name="truncate", cap=2.0)), "correction level ''"),
  (
    dict(correction=dict(name="truncat", level="token", cap=2.0)),
    "unknown correction 'truncat'",
  ),
  (
    dict(correction=dict(name="truncate", level="sequence", cap=-1.0)),
    "cap is -1.0",
  ),
  (
    dict(correction=dict(name="mask", level="token", low=2.0, high=0.5)),
    "low 2.0 is not below high 0.5",
  ),
]


@pytest.mark.parametrize("changes, words", WRONG)
def test_wrong_settings_are_refused_at_the_start(changes, words):
  check(**PLAIN)
  with pytest.raises(ValueError, match=words):
    check(**PLAIN | changes)
