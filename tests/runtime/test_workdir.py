"""A workdir belongs to one config, and to one process at a time."""

import json

import pytest

from r1jax.runtime.workdir import claim


def test_a_workdir_belongs_to_one_config(tmp_path):
  config = {"seed": 0, "loss": {"clip": 0.2}, "sizes": (1, 2), "num_steps": 3}
  ignore = ("num_steps", "evaluation")
  claim(tmp_path, config, ignore=ignore)
  claim(tmp_path, config | {"num_steps": 9}, ignore=ignore)
  saved = json.loads((tmp_path / "config.json").read_text())
  assert saved["num_steps"] == 9
  claim(tmp_path, config | {"evaluation": {"every": 2}}, ignore=ignore)
  with pytest.raises(
    ValueError,
    match=r"loss\.clip was 0\.2, is 0\.3; choose another --workdir, or delete",
  ):
    claim(tmp_path, config | {"loss": {"clip": 0.3}}, ignore=ignore)
  with pytest.raises(ValueError, match="seed was 0, is 'absent'"):
    claim(
      tmp_path, {k: v for k, v in config.items() if k != "seed"}, ignore=ignore
    )


def test_a_workdir_has_one_process(tmp_path, python):
  claim(tmp_path, {"seed": 0})
  code = (
    f"from r1jax.runtime.workdir import claim; claim({str(tmp_path)!r}, {{}})"
  )
  done = python("-c", code)
  assert "is in use by another process" in done.stderr
