"""Microbatches of SFT: weights, hosts, long texts, and a teacher's tokens."""

import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r1jax.data.demonstrations import Text
from r1jax.losses.distillation import forward_kl
from r1jax.models import transformer
from r1jax.parallel.mesh import make_mesh
from r1jax.runtime import distributed
from r1jax.training import distillation, sft, sft_batch
from r1jax.types import Example

RNG = np.random.default_rng(0)
IDS = 37  # Of the tokenizer; the toy model has a few more.


def text(read, *turns):
  """A text of `read` tokens, then turns of (tokens, weight)."""
  weights = np.repeat(
    [0.0, *(weight for _, weight in turns)], [read, *(n for n, _ in turns)]
  )
  return Text(RNG.integers(3, IDS, len(weights)).astype(np.int32), weights)


TEXTS = [
  text(4, (3, 1.0)),
  text(2, (2, 0.5), (5, 0.0), (4, 2.0)),
  text(0, (6, 1.0)),
  text(7, (1, 3.0)),
]


def batches_of(texts, name="token_mean", widths=(16, 12), rows=2):
  return sft_batch.make_batches(
    make_mesh(data=1), texts, dict(name=name), widths=widths, shard_rows=rows
  )


def total(function, params, batches, key="loss/nll"):
  return sum(float(function(params, batch)[1][key]) for batch in batches)


@pytest.fixture(scope="module")
def student(toy):
  """(model, parameters on the device)"""
  return toy[0], jax.tree.map(jnp.asarray, toy[1])


def logprobs_of(model, mtp=False):
  """log p [B, T, IDS] of tokens at each slot, maybe by the MTP block."""

  def run(params, packed):
    forward = transformer.forward(model, params, packed, mtp=mtp)
    hidden = forward.mtp_hidden[0] if mtp else forward.hidden
    return jax.nn.log_softmax(transformer.logits(params, hidden)[..., :IDS])

  return jax.jit(run)


@pytest.fixture(scope="module")
def nll(student):
  """The jitted objective without its other terms."""
  objective = functools.partial(
    sft.objective, student[0], IDS, mtp=0, balance=0
  )
  return jax.jit(objective)


@pytest.fixture(scope="module")
def token_nll(student):
  """The negative log-likelihood of every token of each text, one by one."""
  tokens = np.zeros((len(TEXTS), 16), np.int32)
  for row, item in zip(tokens, TEXTS):
    row[: len(item.tokens)] = item.tokens
  rows = transformer.pack_rows(tokens)
  logprobs = np.asarray(logprobs_of(student[0])(student[1], rows))
  return [
    -np.r_[0.0, row[np.arange(15), item[1:]]]
    for row, item in zip(logprobs, tokens)
  ]


@pytest.mark.parametrize("name", ["token_mean", "completion_mean"])
@pytest.mark.parametrize("widths, rows", [((16, 12), 2), ((16,), 4)])
def test_the_loss_is_the_weighted_mean_however_texts_are_packed(
  student, nll, token_nll, name, widths, rows
):
  above = below = 0.0
  for item, values in zip(TEXTS, token_nll):
    weights, values = item.weights.copy(), values[: len(item.weights)]
    weights[0] = 0  # Nothing predicts the first token of a text.
    if name == "completion_mean":
      weights /= np.sum(weights > 0)
    above, below = above + np.sum(weights * values), below + weights.sum()
  batches = batches_of(TEXTS, name, widths, rows)
  assert total(nll, student[1], batches) == pytest.approx(
    above / below, rel=1e-5
  )
  assert int(batches[0].num_targets) == 3 + 6 + 5 + 1


def test_several_answers_in_one_text_have_the_loss_of_one_text_each(
  student, nll
):
  (whole,) = [item for item in TEXTS if len({*item.weights}) == 3]
  first, second = (
    Text(*(x[:4] for x in whole)),
    whole._replace(
      weights=np.where(np.arange(len(whole.weights)) < 4, 0, whole.weights)
    ),
  )
  one = total(nll, student[1], batches_of([whole]))
  two = total(nll, student[1], batches_of([first, second]))
  assert one == pytest.approx(two, rel=1e-5)


def test_mtp_blocks_learn_only_tokens_with_a_weight(student):
  model, params = student
  loss = jax.jit(functools.partial(sft.objective, model, IDS, mtp=1, balance=0))
  (whole,) = [item for item in TEXTS if len({*item.weights}) == 3]
  (batch,) = batches_of([whole], widths=(16,), rows=1)
  measured = float(loss(params, batch)[1]["loss/mtp"])
  logprobs = np.asarray(logprobs_of(model, mtp=True)(params, batch.packed)[0])
  weights = whole.weights
  # The block at slot t predicts token t + 2; origins begin at the prompt's end.
  expected = sum(
    -weights[t + 2] * float(logprobs[t, whole.tokens[t + 2]])
    for t in range(1, len(weights) - 2)
  )
  assert measured == pytest.approx(expected / weights.sum(), rel=1e-5)


def exchange(hosts):
  """A stand-in of `distributed.all_gather` between threads."""
  barrier, local = threading.Barrier(hosts), threading.local()
  slots = [None] * hosts

  def all_gather(array):
    slots[local.host] = array
    barrier.wait()
    result = np.stack(slots)
    barrier.wait()
    return result

  return all_gather, local


@pytest.mark.parametrize("hosts", [1, 3, 5])
def test_all_hosts_have_the_texts_of_all(monkeypatch, hosts):
  all_gather, local = exchange(hosts)
  monkeypatch.setattr(distributed, "all_gather", all_gather)
  found = [None] * hosts

  def run(host):
    local.host = host
    found[host] = sft_batch.gather(TEXTS[host::hosts])

  threads = [threading.Thread(target=run, args=(i,)) for i in range(hosts)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  expected = [item for host in range(hosts) for item in TEXTS[host::hosts]]
  for texts in found:
    assert len(texts) == len(expected)
    for one, other in zip(texts, expected):
      np.testing.assert_array_equal(one.tokens, other.tokens)
      np.testing.assert_array_equal(one.weights, other.weights)


class Words:
  vocab_size, eos_ids = IDS, (2,)
  prefix_ids, special_tokens = (), ()

  def encode(self, text):
    return [3 + ord(character) % 30 for character in text]

  def decode(self, ids):
    return ""


def read(dataset, step=0):
  return sft_batch.read_texts(
    dataset, "{question}", Words(), count=6, seed=1, step=step
  )


def test_each_host_reads_its_share_of_a_step(monkeypatch):
  dataset = [Example("q", "a" * i) for i in range(12)]
  sizes = lambda texts: [len(item.tokens) for item in texts]
  whole = sizes(read(dataset))
  monkeypatch.setattr(jax, "process_count", lambda: 4)
  shares = []
  for host in range(4):
    monkeypatch.setattr(jax, "process_index", lambda host=host: host)
    shares.append(sizes(read(dataset)))
  assert [*map(len, shares)] == [2, 2, 1, 1]
  assert sorted(sum(shares, [])) == sorted(whole)


def test_texts_that_do_not_fit_a_row_are_left_out_whole_and_counted():
  own = [text(1, (n, 1.0)) for n in (3, 9, 4, 8)]
  fitting, others = sft_batch.gather_fitting(own, 8)
  assert [len(item.tokens) for item in fitting] == [4, 5, 9]
  assert others == 1
  with pytest.raises(ValueError, match="of 4 texts takes 3 slots.* is 2; set"):
    sft_batch.gather_fitting(own, 2)


def test_steps_are_read_ahead_in_order_and_errors_come_in_their_turn():
  threads = {*threading.enumerate()}

  def work(step):
    if step == 6:
      raise ValueError("a.jsonl:7: not JSON")
    return [step]

  with sft_batch.read_ahead(work, 3, 9) as values:
    assert [next(values) for _ in range(3)] == [[3], [4], [5]]
    with pytest.raises(ValueError, match="a.jsonl:7: not JSON"):
      next(values)
  with sft_batch.read_ahead(work, 5, 5) as values:
    assert [*values] == []
  for thread in {*threading.enumerate()} - threads:
    thread.join(10)
    assert not thread.is_alive()


def test_an_example_that_has_no_texts_is_named():
  bad = dict(messages=[dict(role="system", content="")] * 2)
  with pytest.raises(ValueError, match="example 'x': .* has no answer"):
    read([Example("", "", id="x", metadata=bad)])


@pytest.fixture(scope="module")
def other(student):
  """A teacher with other weights."""
  return jax.tree.map(lambda x: jnp.roll(x, 1, axis=-1), student[1])


@pytest.mark.parametrize("top_k", [3, IDS])
def test_the_loss_of_distillation_is_the_kl_from_the_teacher(
  student, other, top_k, monkeypatch
):
  five_columns = 40 * 2 * 5
  monkeypatch.setattr(distillation, "LOGITS", five_columns)
  model, params = student
  mark = jax.jit(functools.partial(distillation.teach, model, IDS, top_k))
  loss = jax.jit(
    functools.partial(
      sft.objective, model, IDS, mtp=0, balance=0, distillation=0.25
    )
  )
  batches = [mark(other, batch) for batch in batches_of(TEXTS)]
  found = total(loss, params, batches, "loss/distillation")

  logprobs = logprobs_of(model)
  kl = lambda packed: forward_kl(
    logprobs(params, packed), logprobs(other, packed)
  )
  expected = sum(float(jnp.sum(kl(x.packed) * x.weights)) for x in batches)
  if top_k == IDS:
    assert found == pytest.approx(expected, rel=1e-4)
  else:
    assert 0 < found < expected
  value, numbers = loss(params, batches[0])
  mixed = 0.75 * numbers["loss/nll"] + 0.25 * numbers["loss/distillation"]
  assert value == pytest.approx(float(mixed), rel=1e-6)
  # A student that is its teacher has nothing to learn.
  same = [mark(params, batch) for batch in batches_of(TEXTS)]
  assert total(loss, params, same, "loss/distillation") == pytest.approx(
    0, abs=1e-5
  )
