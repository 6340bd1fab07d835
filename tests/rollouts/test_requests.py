"""Requests that come and go, each with settings of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax import ops
from r1jax.models import transformer
from r1jax.parallel.mesh import make_mesh
from r1jax.rollouts.engine import make_engine
from r1jax.rollouts.requests import Request, key_of
from r1jax.rollouts.stops import StopWatch
from r1jax.types import FINISH_LENGTH, FINISH_STOP

PREFIX = (7, 30, 7, 9)
RNG = np.random.default_rng(5)
PROMPTS = [
  [*PREFIX, *RNG.integers(0, 37, size).tolist()] for size in (3, 1, 6, 4, 6)
]


class Letters:
  """The toy's ids as letters, none of which ends a text."""

  vocab_size, eos_ids, prefix_ids = 37, (), ()

  def encode(self, text):
    return [ord(letter) - ord("A") for letter in text]

  def decode(self, ids):
    return "".join(chr(ord("A") + i) for i in ids)


def make(toy, prompt_tokens):
  return make_engine(
    toy.model,
    Letters(),
    make_mesh(data=1),
    PREFIX,
    num_slots=4,
    decode_steps=3,
    prompt_tokens=prompt_tokens,
    max_tokens=24,
    temperature=1.0,
  )


@pytest.fixture(scope="module")
def engine(toy):
  return make(toy, prompt_tokens=6)


def run(engine, state, outputs=None):
  """Steps until all is done: tokens and log-probabilities by request, the last
  finish reason, and the texts before stop strings."""
  made = {}
  while not state.done:
    state, output = engine.step(state)
    if outputs is not None:
      outputs.append(output)
    take(made, output)
  return made


def take(made, output):
  for row, id in enumerate(output.ids):
    one = made.setdefault(id, dict(ids=[], logprobs=[], sampled=[], top=[]))
    new = slice(output.count[row] - output.start[row])
    one["ids"] += output.tokens[row, new].tolist()
    one["logprobs"] += output.logprobs[row, new].tolist()
    one["sampled"] += output.sampled[row, new].tolist()
    if output.top_ids.shape[-1]:
      pair = output.top_ids[row, new], output.top_logprobs[row, new]
      one["top"] += [*zip(*pair)]
    one["finish"] = int(output.finish[row])
    one["text"] = output.texts.get(id)


def alone(engine, toy, request):
  return run(engine, engine.add(engine.start(toy.params), [request]))[
    request.id
  ]


MIXED = [
  Request("warm", PROMPTS[0], 20, key_of(1), temperature=0.7),
  Request("greedy", PROMPTS[1], 15, key_of(2), temperature=0.0),
  Request("nucleus", PROMPTS[2], 24, key_of(3), top_p=0.5),
  Request("few", PROMPTS[3], 9, key_of(4), top_k=3),
  Request("plain", PROMPTS[4], 24, key_of(5)),
  Request(
    "stopped", PROMPTS[0], 24, key_of(6), stop_ids=tuple(range(0, 37, 4))
  ),
]


@pytest.mark.slow
def test_each_slot_has_settings_of_its_own(engine, toy):
  """Together and alone; requests come while others are under way."""
  state = engine.add(engine.start(toy.params), MIXED[:3])
  made = {}
  state, output = engine.step(state)
  take(made, output)
  together = run(engine, engine.add(state, MIXED[3:]))
  for request in MIXED:
    expected = alone(engine, toy, request)
    one = together[request.id]
    if request.id in made:
      for name in ("ids", "logprobs"):
        one[name] = made[request.id][name] + one[name]
    assert one["ids"] == expected["ids"], request.id
    np.testing.assert_allclose(one["logprobs"], expected["logprobs"], atol=1e-5)
    assert one["finish"] == expected["finish"]
    if request.id == "stopped":
      assert expected["finish"] == FINISH_STOP
      assert [i % 4 == 0 for i in expected["ids"]].index(True) == (
        len(expected["ids"]) - 1
      )
    else:
      assert expected["finish"] == FINISH_LENGTH
      assert len(expected["ids"]) == request.max_tokens


def greedy(id="a", prompt=PROMPTS[0], **kwargs):
  return Request(id, prompt, temperature=0.0, **{"max_tokens": 20} | kwargs)


@pytest.fixture(scope="module")
def whole(engine, toy):
  """A greedy completion of 20 tokens that nothing stops."""
  return alone(engine, toy, greedy())


def test_a_stop_string_cuts_where_its_last_token_ends(engine, toy, whole):
  """Strings of one to four tokens, wherever calls of `decode` begin."""
  text, tried = Letters().decode(whole["ids"]), 0
  for size in (1, 2, 4):
    for start in range(0, 20 - size, 5):
      string = text[start : start + size]
      first = text.index(string)
      got = alone(engine, toy, greedy(stop_strings=("~", string)))
      assert got["ids"] == whole["ids"][: first + size]
      assert (got["finish"], got["text"]) == (FINISH_STOP, text[:first])
      tried += 1
  assert tried > 8
  got = alone(engine, toy, greedy(stop_strings=("~",)))
  assert got["ids"] == whole["ids"] and got["text"] is None


def test_a_stop_string_may_begin_and_end_within_tokens():
  class Pieces(Letters):
    def decode(self, ids):
      return "".join(["ab</", "to", "ol>cd"][i] for i in ids)

  watch = StopWatch(Pieces(), ("</tool>", "never"))
  found = [watch.push(i, sampled=True) for i in (1, 0, 1, 2)]
  assert found == [None, None, None, "toab"]
  # What was found once is not found again, nor what was not sampled.
  assert watch.push(0, sampled=True) is None
  assert watch.push(1, sampled=False) is None
  assert watch.push(2, sampled=True) is None


def test_forced_tokens_are_what_the_completion_goes_on_from(engine, toy, whole):
  """As if they stood in the prompt; also behind a stop string."""
  given = [3, 14, 15, 9, 26]
  text = Letters().decode(whole["ids"])
  state = engine.add(
    engine.start(toy.params), [greedy(stop_strings=(text[3:5],))]
  )
  made, cut = {}, None
  while not state.done:
    state, output = engine.step(state)
    take(made, output)
    if output.finished and cut is None:
      cut = len(made["a"]["ids"])
      state = engine.append(state, "a", given[:2])
      state = engine.append(state, "a", given[2:])
  got = made["a"]
  assert cut == text.index(text[3:5]) + 2
  assert got["ids"][: cut + 5] == whole["ids"][:cut] + given
  expected = [True] * cut + [False] * 5 + [True] * (20 - cut - 5)
  assert got["sampled"] == expected
  assert not any(got["logprobs"][cut : cut + 5])
  prompt = [*PROMPTS[0], *got["ids"][: cut + 5]]
  rest = alone(
    make(toy, 30), toy, greedy(prompt=prompt, max_tokens=20 - cut - 5)
  )
  assert got["ids"][cut + 5 :] == rest["ids"]
  np.testing.assert_allclose(
    got["logprobs"][cut + 5 :], rest["logprobs"], atol=1e-5
  )


def test_forced_tokens_must_fit_and_have_a_slot(engine, toy):
  state = engine.add(engine.start(toy.params), [greedy(max_tokens=6)])
  with pytest.raises(ValueError, match="request 'a' has no slot"):
    engine.append(state, "a", [1])
  state, _ = engine.step(state)
  with pytest.raises(ValueError, match="4 tokens .* max_tokens 6 leaves 3"):
    engine.append(state, "a", [1, 2, 3, 4])
  with pytest.raises(ValueError, match="ids from 1 to 40"):
    engine.append(state, "a", [1, 40])


def test_a_removed_request_frees_its_slot(engine, toy):
  requests = [greedy(id) for id in range(6)]
  state = engine.add(engine.start(toy.params), requests)
  state, output = engine.step(state)
  assert output.ids == [0, 1, 2, 3]
  state = engine.remove(state, [1, 5, "unknown"])
  assert state.busy.tolist() == [0, 2, 3]
  state, output = engine.step(state)
  assert output.ids == [0, 4, 2, 3]
  made = run(engine, state)
  assert {*made} == {0, 2, 3, 4}
  assert state.done and not state.read


def test_prompts_are_read_once_and_when_they_are_needed(
  engine, toy, monkeypatch
):
  from r1jax.rollouts import slots

  read, inner = [], slots.read_prompts

  def spy(*args, **kwargs):
    read.append(args[3])
    return inner(*args, **kwargs)

  monkeypatch.setattr(slots, "read_prompts", spy)
  requests = [
    greedy((p, g), PROMPTS[p % 5], group=p, max_tokens=3)
    for p in range(10)
    for g in range(2)
  ]
  state = engine.add(engine.start(toy.params), requests)
  state, _ = engine.step(state)
  assert len(read) == 1 and len(read[0]) == 4
  run(engine, state)
  assert len(read) == 3  # Four at a time.


@pytest.fixture(scope="module")
def log_softmax(toy):
  """Of every token of a text, from the whole text [T, V]."""

  params = jax.tree.map(jnp.asarray, toy.params)

  @jax.jit
  def jitted(tokens):
    rows = transformer.pack_rows(tokens[None])
    hidden = transformer.forward(toy.model, params, rows).hidden
    logits = transformer.logits(params, hidden)
    return jax.nn.log_softmax(ops.mask_padding(logits, 37))[0]

  return lambda ids: np.asarray(jitted(jnp.array(ids)))


def test_a_prompt_has_the_logprobs_of_a_forward_pass(engine, toy, log_softmax):
  requests = [
    greedy(p, PROMPTS[p], max_tokens=1, prompt_logprobs=p != 1, top_logprobs=p)
    for p in range(5)
  ]
  outputs = []
  run(engine, engine.add(engine.start(toy.params), requests), outputs)
  prompts = {id: made for out in outputs for id, made in out.prompts.items()}
  assert {*prompts} == {0, 2, 3, 4}
  for p, made in prompts.items():
    expected = log_softmax(PROMPTS[p])[:-1]
    following = PROMPTS[p][1:]
    np.testing.assert_allclose(
      made.logprobs,
      expected[np.arange(len(following)), following],
      atol=1e-5,
    )
    if p:
      order = np.argsort(-expected, axis=1)[:, :p]
      np.testing.assert_array_equal(made.top_ids[:, :p], order)


def test_top_logprobs_are_those_of_log_softmax(engine, toy, log_softmax):
  for temperature in (1.0, 0.0, 0.5):
    request = Request(
      "a", PROMPTS[2], 12, key_of(9), temperature=temperature, top_logprobs=5
    )
    got = alone(engine, toy, request)
    text = [*PROMPTS[2], *got["ids"]]
    expected = log_softmax(text)[len(PROMPTS[2]) - 1 : -1]
    if temperature:
      expected = expected / temperature
      expected -= np.log(np.exp(expected).sum(axis=1, keepdims=True))
    ids, logprobs = map(np.array, zip(*got["top"]))
    order = np.argsort(-expected, axis=1)[:, : ids.shape[1]]
    best = np.take_along_axis(expected, order, axis=1)
    np.testing.assert_allclose(logprobs, best, atol=1e-5)
    np.testing.assert_array_equal(ids[:, :5], order[:, :5])
  assert not alone(engine, toy, request._replace(top_logprobs=0))["top"]


@pytest.mark.parametrize(
  "setting, message",
  [
    (dict(max_tokens=0), "max_tokens 0 is not within 1 and the engine's 24"),
    (dict(temperature=-1.0), "temperature -1.0 is below 0"),
    (dict(prompt=[*PREFIX, 40]), "ids from 7 to 40"),
    (dict(stop_ids=range(17)), "17 stop_ids, more than 16"),
    (dict(stop_strings=("",)), "an empty stop string"),
    (dict(top_logprobs=21), "top_logprobs 21 is not within 0 and 20"),
    (dict(group="b"), "of group 'b', whose prompt is another one"),
    (dict(id="b"), "request 'b' is under way already"),
  ],
)
def test_requests_that_cannot_be_served_are_refused(
  engine, toy, setting, message
):
  state = engine.add(engine.start(toy.params), [Request("b", PROMPTS[1])])
  request = Request("a", PROMPTS[0])._replace(**setting)
  with pytest.raises(ValueError, match=message):
    engine.add(state, [request])
