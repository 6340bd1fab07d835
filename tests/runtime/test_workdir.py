"""A workdir belongs to one config, and to one process at a time."""

import json

import pytest

from r1jax.runtime.workdir import claim


def test_a_workdir_belongs_to_one_config(tmp_path, caplog):
  config = {"seed": 0, "loss": {"clip": 0.2}, "sizes": (1, 2), "num_steps": 3}
  claim(tmp_path, config)
  claim(tmp_path, config | {"num_steps": 9})
  saved = json.loads((tmp_path / "config.json").read_text())
  assert saved["num_steps"] == 9
  claim(tmp_path, config | {"evaluation": {"every": 2}})
  with pytest.raises(
    ValueError,
    match=r"loss\.clip was 0\.2, is 0\.3; choose another --workdir, or delete",
  ):
    claim(tmp_path, config | {"loss": {"clip": 0.3}})
  with pytest.raises(ValueError, match="seed was 0, is 'absent'"):
    claim(tmp_path, {k: v for k, v in config.items() if k != "seed"})
  assert not caplog.text


def test_what_moves_a_run_by_rounding_may_change_and_is_logged(
  tmp_path, caplog
):
  config = {
    "mesh": {"data": 8},
    "rows": {"width": 48},
    "sampling": {"num_slots": 16, "temperature": 1.0},
    "model": {"how": {"remat": "none"}, "compute_dtype": "float32"},
  }
  claim(tmp_path, config)
  claim(tmp_path, config)
  assert not caplog.text
  mesh = {"mesh": {"fsdp": 4}, "rows": {"width": 64}}
  claim(tmp_path, config | mesh)
  text = "last bits: mesh.data was 8, is 'absent'; mesh.fsdp was 'absent', is 4"
  assert f"{text}; rows.width was 48, is 64" in caplog.text
  how = {"model": {"how": {"remat": "block"}, "compute_dtype": "float32"}}
  claim(tmp_path, config | mesh | how)
  assert "model.how.remat was 'none', is 'block'" in caplog.text
  for change, message in (
    ({"sampling": {"num_slots": 8, "temperature": 0.9}}, "temperature was 1.0"),
    ({"model": {"how": {}, "compute_dtype": "bfloat16"}}, "compute_dtype was"),
    ({"meshes": {}, "mesh_name": 1}, "mesh_name was 'absent', is 1"),
  ):
    with pytest.raises(ValueError, match=message):
      claim(tmp_path, config | mesh | how | change)


def test_other_devices_are_logged(tmp_path, caplog):
  claim(tmp_path, {})
  file = tmp_path / "machine.json"
  machine = json.loads(file.read_text())
  assert machine["devices"] == 8 and machine["hosts"] == 1
  file.write_text(json.dumps(machine | {"devices": 4, "hosts": 2}))
  claim(tmp_path, {})
  assert "last bits: devices was 4, is 8; hosts was 2, is 1" in caplog.text


def test_a_path_may_change_if_its_content_has_not(tmp_path):
  config = lambda path: {"dataset": {"parts": {"a": {"path": path}}}}
  claim(tmp_path / "known", config("one"), {"dataset": "a" * 64})
  claim(tmp_path / "known", config("two"), {"dataset": "a" * 64})
  with pytest.raises(ValueError, match="the dataset has changed"):
    claim(tmp_path / "known", config("three"), {"dataset": "b" * 64})
  claim(tmp_path / "unknown", config("one"))
  for contents in ({}, {"dataset": "a" * 64}, {"a": "a" * 64}):
    with pytest.raises(ValueError, match="parts.a.path was 'one', is 'two'"):
      claim(tmp_path / "unknown", config("two"), contents)


def test_a_workdir_has_one_process(tmp_path, python):
  claim(tmp_path, {"seed": 0})
  code = (
    f"from r1jax.runtime.workdir import claim; claim({str(tmp_path)!r}, {{}})"
  )
  done = python("-c", code)
  assert "is in use by another process" in done.stderr
