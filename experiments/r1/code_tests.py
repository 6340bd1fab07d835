r"""Tests for programming problems, written by another model (stage 1 on).

    r1jax train --config=experiments/r1/code_tests.py --workdir=runs/r1/tests \
        --config.dataset.path=problems.jsonl \
        --config.writer.base_url=http://localhost:8000/v1

From the paper (arXiv:2501.12948v2, appendix B.3.2): for problems of Codeforces
and AtCoder, DeepSeek-V2.5 wrote programs that generate inputs, at random, to
break wrong solutions, and so large that slow ones run out of time; the inputs
are filtered by correct submissions, then by whether wrong submissions fail.

Ours, because the paper gives no values: two generators of each kind, ten inputs
of each, at most 20 tests.

A line of the file has `problem`, `tests` (such as the examples of the
statement), and `right` and `wrong`, each a list of programs; name other fields
by `dataset.fields`. RL then reads WORKDIR/kept by the dataset `problems`, with
the domain "code". Not run with a real model.
"""

from ml_collections import ConfigDict


def get_config():
  """The config of the run; the caller sets the file and the server."""
  c = ConfigDict()
  c.loop = "code_tests"
  c.cpu_devices = 1
  c.dataset = dict(name="problems", path="", domain="code")
  c.writer = dict(
    base_url="http://localhost:8000/v1",
    model="deepseek-v3",
    parameters=dict(temperature=0.7),
  )
  c.generators = 2  # Of each kind.
  c.tests = dict(seeds=10, max_tests=20, seconds=4.0)
  c.problems_per_shard = 64
  c.workers = 8  # Problems at a time, on as many cores.
  return c
