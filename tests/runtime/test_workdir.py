"""A workdir belongs to one config, and to one process at a time."""

import importlib.util
import json
import pathlib

import pytest

from r1jax.runtime.workdir import claim, prepare


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


@pytest.mark.parametrize(
  "url", ["gs://b/run", "s3://b/run", "file:///run", "GS://b"]
)
@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_a_url_is_no_workdir(tmp_path, monkeypatch, url, kind):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=r"is a URL.* --bucket=\w+://(b|run)"):
    prepare(kind(url))
  assert not [*tmp_path.iterdir()]
  prepare("a:b/run")  # No scheme: a folder may be called so.
  assert (tmp_path / "a:b" / "run").is_dir()


@pytest.mark.skipif(
  importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed"
)
def test_a_bucket_without_its_package_names_the_extra(tmp_path):
  with pytest.raises(ValueError, match=r"pip install 'r1jax\[gcs\]'"):
    prepare(tmp_path / "run", "gs://bucket/run")
