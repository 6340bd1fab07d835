"""The cache of a judge's replies."""

import json
import os
import subprocess
import sys

import pytest

from r1jax.rewards.judges import endpoint
from r1jax.rewards.judges.endpoint import Request, ask

pytest.importorskip("openai")


def number(request, reply):
  """Returns a reply that is a number; None for any other reply."""
  return float(reply) if reply.isdigit() else None


def asks(count):
  return [Request("add", f"{i}") for i in range(count)]


@pytest.fixture
def cached(place, tmp_path):
  return place._replace(cache=str(tmp_path / "replies"))


def kept(cached):
  return sorted(
    os.path.join(folder, name)
    for folder, _, names in os.walk(cached.cache)
    for name in names
  )


def test_a_cached_reply_is_not_requested_again(cached, judge_server):
  assert ask(cached, asks(3), number)() == [7.0] * 3
  judge_server.rule = lambda asked: "8"
  elsewhere = cached._replace(deadline=5.0, concurrency=1)
  assert ask(elsewhere, asks(4), number)() == [7.0, 7.0, 7.0, 8.0]
  assert len(judge_server.asked) == 4


def test_other_models_messages_and_parameters_are_not_cached_replies(
  cached, judge_server
):
  request = Request("a", "b")
  ask(cached, [request], number)()
  for place, asked in [
    (cached._replace(model="n"), request),
    (cached._replace(parameters=dict(temperature=0.0)), request),
    (cached, Request("ab", "")),
    (cached, request._replace(sample=1)),
  ]:
    ask(place, [asked], number)()
  assert len(judge_server.asked) == len(kept(cached)) == 5


def test_a_reply_without_a_value_is_not_cached(cached, judge_server):
  judge_server.rule = lambda asked: "nonsense"
  assert ask(cached, asks(1), number)() == [None]
  assert kept(cached) == []


@pytest.mark.parametrize("damage", ["", "{", '"7"', "{}", '{"reply": 7}'])
def test_a_damaged_cache_file_is_replaced(cached, judge_server, damage):
  ask(cached, asks(1), number)()
  (file,) = kept(cached)
  with open(file, "w") as damaged:
    damaged.write(damage)
  assert ask(cached, asks(1), number)() == [7.0]
  assert ask(cached, asks(1), number)() == [7.0]
  assert len(judge_server.asked) == 2


def test_a_cached_reply_without_a_value_is_requested_again(
  cached, judge_server
):
  ask(cached, asks(1), number)()
  judge_server.rule = lambda asked: "eight"
  words = dict(eight=8.0)
  assert ask(cached, asks(1), lambda _, reply: words.get(reply))() == [8.0]
  assert len(judge_server.asked) == 2
  assert len(kept(cached)) == 1


def test_a_cache_that_cannot_be_written_does_not_lose_values(
  place, judge_server, tmp_path, caplog
):
  (tmp_path / "file").write_text("in the way")
  place = place._replace(cache=str(tmp_path / "file"))
  assert ask(place, asks(1), number)() == [7.0]
  assert "cannot be cached" in caplog.text


# The file alone, without its package: it starts in a tenth of a second.
WRITER = """
import pathlib, runpy, sys
module = runpy.run_path(sys.argv[1])
place, request = module["Endpoint"]("", "m"), module["Request"]("a", "b")
for i in range(200):
  reply = sys.argv[2] * (1 + 5000 * (i % 4))
  module["_write_cache"](pathlib.Path(sys.argv[3]), place, request, reply)
"""


@pytest.mark.slow
def test_processes_that_share_a_cache_read_whole_replies(tmp_path):
  file = tmp_path / "ab" / "reply.json"
  writers = [
    subprocess.Popen(
      [sys.executable, "-c", WRITER, endpoint.__file__, letter, str(file)]
    )
    for letter in "xyz"
  ]
  seen = set()
  while any(writer.poll() is None for writer in writers):
    reply = endpoint._read_cache(file)
    assert reply or not seen  # From the first on there is always one.
    if reply:
      assert len({*reply}) == 1
      seen.add(len(reply))
  assert [writer.wait() for writer in writers] == [0, 0, 0]
  assert len(seen) > 1
  assert [entry.name for entry in file.parent.iterdir()] == ["reply.json"]
  assert json.loads(file.read_text())["user"] == "b"
