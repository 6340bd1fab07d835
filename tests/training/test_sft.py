"""The loop of imitation: what it counts, and that it resumes."""

import functools
import json

import jax
import ml_collections
import numpy as np
import pytest

from r1jax import data, hf
from r1jax.data import demonstrations, templates, tokenizer
from r1jax.parallel.mesh import make_mesh
from r1jax.runtime import checkpoint, metrics
from r1jax.training import inspection, sft, sft_batch
from r1jax.types import Example

STEPS = 6


def load_sums(*, size):
  return [
    Example("" if i % 2 else f"{i % 7}+{i % 5}=", f"{i % 7 + i % 5} ok\n")
    for i in range(size)
  ]


class Words:
  vocab_size, eos_ids = 37, (2,)
  prefix_ids, special_tokens = (), ()

  def encode(self, text):
    return [3 + ord(character) % 30 for character in text]

  def decode(self, ids):
    return ""


def texts_of(examples, words, template="{question}"):
  return sft_batch.read_texts(
    examples, template, words, count=len(examples), seed=0, step=0
  )


def make_batches(texts, *, name="token_mean", **rows):
  return sft_batch.make_batches(
    make_mesh(data=1), texts, dict(name=name), **rows
  )


def make_batch(examples, words, *, width, rows):
  """The only microbatch of an update on these examples."""
  render = templates.find("{question}", words)
  texts = [demonstrations.texts(x, render, words) for x in examples]
  (batch,) = make_batches(sum(texts, []), widths=(width,), shard_rows=rows)
  return batch


def test_prompts_are_read_and_answers_with_their_end_are_imitated():
  examples = [Example("ab", "cde"), Example("", "xyz"), Example("a", "b")]
  batch = make_batch(examples, Words(), width=8, rows=2)
  packed = jax.device_get(batch.packed)
  imitated = lambda i, text: {
    i * 8 + j + (not examples[i].prompt): token for j, token in enumerate(text)
  }
  encode = Words().encode
  expected = (
    imitated(0, [*encode("cde"), 2])
    | imitated(1, [*encode("yz"), 2])  # Nothing precedes the first.
    | imitated(2, [*encode("b"), 2])
  )
  counted = packed.origin >= 0
  got = dict(zip(packed.origin[counted].tolist(), packed.targets[counted]))
  assert got == expected
  assert batch.num_targets == len(expected) == 4 + 3 + 2
  assert batch.num_tokens == (2 + 4 - 1) + (4 - 1) + (1 + 2 - 1)
  assert packed.tokens.shape == (2, 8)


def test_a_text_begins_with_what_the_tokenizer_puts_first():
  class Begun(Words):
    prefix_ids = (1,)

  examples = [Example("ab", "cde"), Example("", "xyz")]
  batch = make_batch(examples, Begun(), width=8, rows=2)
  packed = jax.device_get(batch.packed)
  encode = Words().encode
  texts = [[1, *encode("abcde")], [1, *encode("xyz")]]
  for row, text in zip(packed.tokens, texts):
    assert row[: len(text)].tolist() == text
  # All of a document is imitated, its first token too.
  assert (batch.num_targets, batch.num_tokens) == (4 + 4, 6 + 4)
  counted = packed.origin[1] >= 0
  assert packed.targets[1][counted].tolist() == [*encode("xyz"), 2]


def test_a_prefill_is_read_and_the_rest_of_the_answer_imitated():
  template = "Q: {question}\nA: <think>"
  render = templates.find(template, Words())
  for answer, read, learned in (
    ("<think>c</think>d", "Q: ab\nA: <think>", "c</think>d"),
    # An answer without a thought does not follow an opened one.
    ("d", "Q: ab\nA: ", "d"),
  ):
    (text,) = demonstrations.texts(Example("ab", answer), render, Words())
    assert text.tokens.tolist() == [*Words().encode(read + learned), 2]
    expected = [0.0] * len(read) + [1.0] * (len(learned) + 1)
    assert text.weights.tolist() == expected


def test_bos_takes_a_place_in_the_window():
  class Begun(Words):
    prefix_ids = (1,)

  c = ml_collections.ConfigDict(dict(template="plain", rows=dict(widths=(12,))))
  c.sampling = dict(prompt_tokens=3, max_tokens=8)
  check = lambda text: inspection.check_prompts(
    [Example(text, "", id="x:1")], Begun(), c
  )
  check("ab")  # And the line break.
  with pytest.raises(ValueError, match="x:1: a prompt of 4 tokens beyond"):
    check("abc")
  c.sampling.max_tokens = 10
  with pytest.raises(ValueError, match="prompt of 4 tokens.* be at least 13"):
    check("ab")


def test_a_document_longer_than_a_row_is_refused():
  with pytest.raises(ValueError, match="9 tokens does not fit rows of 8"):
    make_batch([Example("ab", "cdefghi")], Words(), width=8, rows=2)


def test_the_numbers_of_an_update_are_those_of_all_its_microbatches():
  texts = texts_of([Example("ab", "cde")] * 5, Words())
  batches = make_batches(texts, widths=(16, 8), shard_rows=1)
  assert [x.weights.shape for x in batches] == [(1, 16), (1, 16)]
  assert {int(x.num_targets) for x in batches} == {5 * 4}
  assert {int(x.num_tokens) for x in batches} == {5 * (2 + 4 - 1)}
  assert sum(x.weights.sum() for x in batches) == pytest.approx(1)


def test_context_must_divide_the_tokens_of_every_row():
  rows = ml_collections.ConfigDict(dict(widths=(8, 6), shard_rows=1))
  inspection.check_rows(rows, make_mesh(data=1, context=2))
  with pytest.raises(ValueError, match="context 4 does not divide the 6 tok"):
    inspection.check_rows(rows, make_mesh(data=1, context=4))


@pytest.fixture(scope="module")
def runs(base, compiled_once, tmp_path_factory):
  """One run straight to the end, and one in two parts."""

  def config(num_steps):
    return ml_collections.ConfigDict(
      dict(
        loop="sft",
        seed=1,
        template="{question}",
        num_steps=num_steps,
        metrics_every=2,
        checkpoint_every=4,
        cpu_devices=1,
        mesh=dict(data=1),
        model=dict(name="pretrained", path=base),
        tokenizer=dict(documents=40, word_share=0.9),
        dataset=dict(name="sums", size=40),
        batch_examples=8,
        rows=dict(widths=(16, 8), shard_rows=4),
        aggregation=dict(name="token_mean"),
        loss=dict(mtp=0.3, balance=0.01),
        router_bias_speed=0.01,
        offload=("optimizer",),
        optimizer=dict(
          learning_rate=0.03,
          weight_decay=0.1,
        ),
        teacher=dict(),
        evaluation=dict(every=3, dataset=dict(name="sums", size=7), examples=5),
      )
    )

  straight, parted = (
    tmp_path_factory.mktemp(n) for n in ("straight", "parted")
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(data.DATASETS, "sums", load_sums)
    whole = sft.train(config(STEPS), str(straight))
    sft.train(config(2), str(parted))
    rest = sft.train(config(STEPS), str(parted))
  return whole, rest, straight, parted


def test_a_resumed_run_is_the_straight_run_bit_for_bit(runs):
  whole, rest, straight, parted = runs
  assert whole.step == STEPS
  jax.tree.map(np.testing.assert_array_equal, rest, whole)
  rows = [
    [{**row, "time": 0} for row in metrics.read(folder)]
    for folder in (straight, parted)
  ]
  assert rows[0] == rows[1]
  assert [row["step"] for row in rows[0]] == [2, 3, 4, 6, 6]


def test_the_balance_loss_is_a_mean_over_all_tokens_that_are_read(toy):
  """A router without an opinion has 1, however few tokens are imitated."""
  model, params = toy
  moe = params["moe"]["feed_forward"]
  blank = moe | {"router": jax.tree.map(np.zeros_like, moe["router"])}
  params = params | {"moe": params["moe"] | {"feed_forward": blank}}
  measure = jax.jit(
    functools.partial(sft.objective, model, 37, mtp=0.0, balance=1.0)
  )
  for prompt, answer in (("ab" * 15, "c"), ("", "ab" * 15)):
    batch = make_batch(
      [Example(prompt, answer)] * 3,
      Words(),
      width=32,
      rows=4,
    )
    _, numbers = measure(params, batch)
    assert numbers["loss/balance"] == pytest.approx(1.0, rel=1e-5)


def test_every_number_of_a_row_is_in_the_table(runs):
  names = {name for row in metrics.read(runs[2]) for name in row}
  names -= {"step", "time"}
  assert not [name for name in names if metrics.describe(name) is None]
  assert names >= {"loss/nll", "loss/balance", "loss/mtp", "optim/lr"}
  assert names >= {"eval/nll", "eval/texts", "data/epoch", "data/too_long"}


def test_the_loss_falls_on_learned_and_on_held_back_texts(runs):
  rows = metrics.read(runs[2])
  for name, most in ("loss/nll", 0.8), ("loss/mtp", 1.0), ("eval/nll", 0.8):
    values = [row[name] for row in rows if name in row]
    assert values[-1] < most * values[0], name


def test_the_load_of_every_layer_is_told_in_shares(runs):
  row = next(row for row in metrics.read(runs[2]) if row["step"] == 4)
  for layer in (0, 1):  # The MTP block's is the last.
    assert sum(row[f"router/load/{layer}"]) == pytest.approx(1.0)
  assert row["router/load_cv"] > 0


def test_the_balancing_bias_has_moved(runs, toy):
  bias = lambda params: params["moe"]["feed_forward"]["router"]["bias"]
  moved = np.abs(bias(runs[0].params) - bias(toy[1]))
  assert 0.01 <= moved.max() <= STEPS * 0.01 + 1e-6


def test_the_model_is_left_in_hugging_face_layout(runs):
  whole, _, straight, _ = runs
  _, params = hf.load(str(straight / "model"))
  jax.tree.map(np.testing.assert_array_equal, params, whole.params)
  words = tokenizer.load(str(straight / "model"))
  assert words.decode(words.encode("10 ok")) == "10 ok"
  provenance = json.loads((straight / "model/provenance.json").read_text())
  assert provenance["step"] == STEPS and provenance["config"]["seed"] == 1
  assert checkpoint.latest_step(straight) == STEPS
