"""Text to ids and back, for the demo's tokenizer and for released ones."""

import gzip
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1jax.data import templates, tokenizer
from r1jax.rollouts.grading import decode_batch
from r1jax.types import Tokenizer

DEEPSEEK = (
  pathlib.Path(__file__).parents[3] / "shared/data/reference/deepseek_r1"
)
TEXTS = [
  templates.TEMPLATES["r1_zero"].fill(f"{a} + {b} =")
  + f" <think> {a}+{b}={a + b} check {a + b}-{b}={a} ok </think>"
  + f" <answer> {a + b} </answer>"
  for a in range(40)
  for b in (7, 23)
] + [
  "计算3 + 4\n先算3+4=7。答案是7",
  "  two  spaces \n\n",
  "wxyz rare seldom\n",
]
ALPHABET = sorted({*"".join(TEXTS)} - {*"</>"})  # Those stand in tags alone.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("words")
  tokenizer.fit(TEXTS, path / "tokenizer.model", word_share=0.5)
  return path


@pytest.fixture(scope="module")
def loaded(folder):
  return tokenizer.load(str(folder))


def test_texts_survive_encode_and_decode(loaded):
  assert isinstance(loaded, Tokenizer)
  for text in TEXTS:
    ids = loaded.encode(text)
    assert loaded.decode(ids) == text
    assert all(0 < i < loaded.vocab_size for i in ids)  # 0 is unknown.


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from(ALPHABET)))
def test_any_text_of_known_characters_survives_encode_and_decode(loaded, text):
  ids = loaded.encode(text)
  assert loaded.decode(ids) == text
  assert not {*ids} & {0, 1, 2}


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_any_text_is_encoded_without_eos(loaded, text):
  ids = loaded.encode(text)
  assert all(0 <= i < loaded.vocab_size for i in ids)
  assert not {*ids} & {*loaded.eos_ids}
  loaded.decode(ids)


def test_unknown_characters_leave_their_neighbours_alone(loaded):
  ids = loaded.encode("a\u2603b")
  assert ids[1] == 0 and len(ids) == 3
  text = loaded.decode(ids)
  assert text.startswith("a") and text.endswith("b") and text != "ab"


def test_digits_stand_alone(loaded):
  ids = loaded.encode("1203+45=1248")
  assert [loaded.decode([i]) for i in ids] == [*"1203+45=1248"]


def test_tags_are_single_tokens(loaded):
  ids = [loaded.encode(tag) for tag in tokenizer.TAGS]
  assert {len(one) for one in ids} == {1}
  assert len({one[0] for one in ids}) == len(tokenizer.TAGS)
  inside = loaded.encode("x<think>5</think><answer>")
  assert inside[1] == ids[0][0] and inside[3:] == [ids[1][0], ids[2][0]]


def test_frequent_words_are_tokens_and_rare_ones_are_spelled(loaded):
  pieces = lambda text: [loaded.id_to_token(i) for i in loaded.encode(text)]
  assert pieces("7 check 3") == ["7", "\u2581check", "\u2581", "3"]
  assert pieces(" seldom") == ["\u2581", *"seldom"]
  assert "\u2581Assistant" in pieces("the Assistant")


def test_eos_decodes_to_no_text(loaded):
  (end,) = loaded.eos_ids
  ids = loaded.encode("7 ok")
  assert loaded.decode([*ids, end]) == "7 ok"
  assert loaded.decode([end]) == loaded.decode([]) == ""
  for text in ("</s>", "<s>", "<unk>", "<pad>"):
    assert not {*loaded.encode(text)} & {1, 2}


def test_the_same_texts_make_the_same_tokenizer(folder, tmp_path):
  again = tmp_path / "deeper" / "tokenizer.model"
  tokenizer.fit(iter(TEXTS), again, word_share=0.5)
  assert again.read_bytes() == (folder / "tokenizer.model").read_bytes()
  assert [path.name for path in again.parent.iterdir()] == ["tokenizer.model"]


def test_a_tokenizer_is_trained_once(tmp_path):
  asked = []

  def texts():
    for text in TEXTS * 9:
      asked.append(text)
      yield text

  make = lambda: tokenizer.load_or_fit(
    texts(), tmp_path, documents=50, word_share=0.5
  )
  first = make()
  assert len(asked) == 50
  second = make()
  assert len(asked) == 50
  assert first.encode(TEXTS[0]) == second.encode(TEXTS[0])


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
  with pytest.raises(ValueError, match=f"{tmp_path} holds no tokenizer.model"):
    tokenizer.load(str(tmp_path))


def test_a_hugging_face_tokenizer_may_be_zipped(write_tokenizer, tmp_path):
  plain = write_tokenizer(tmp_path / "plain")
  zipped = write_tokenizer(tmp_path / "zipped")
  data = (zipped / "tokenizer.json").read_bytes()
  (zipped / "tokenizer.json.gz").write_bytes(gzip.compress(data))
  (zipped / "tokenizer.json").unlink()
  one, other = tokenizer.load(str(plain)), tokenizer.load(str(zipped))
  assert isinstance(one, Tokenizer)
  for text in ("the Assistant", "\u8ba1\u7b97 \U0001f600\n", ""):
    assert one.encode(text) == other.encode(text)
    assert one.decode([*one.encode(text), *one.eos_ids]) == text


def test_a_hugging_face_tokenizer_must_name_its_eos(write_tokenizer, tmp_path):
  folder = write_tokenizer(tmp_path, eos="<nothing>")
  with pytest.raises(ValueError, match="'<nothing>' is not in the vocabulary"):
    tokenizer.load(str(folder))
  config = folder / "tokenizer_config.json"
  config.write_text(json.dumps(dict(eos_token={"content": "<eos>"})))
  assert tokenizer.load(str(folder)).eos_ids == (0,)
  config.unlink()
  with pytest.raises(ValueError, match="tokenizer_config.json is missing"):
    tokenizer.load(str(folder))


@pytest.fixture(scope="module")
def deepseek():
  if not DEEPSEEK.exists():
    pytest.skip(f"{DEEPSEEK} is absent")
  return tokenizer.load(str(DEEPSEEK))


def test_deepseek_r1_encodes_as_released(deepseek):
  lines = (DEEPSEEK / "tokenizer_golden.jsonl").read_text().splitlines()
  assert len(lines) > 100
  for line in lines:
    row = json.loads(line)
    assert deepseek.encode(row["text"]) == row["ids"], row["id"]
    if row["round_trip"] and deepseek.eos_ids[0] not in row["ids"]:
      assert deepseek.decode(row["ids"]) == row["text"], row["id"]


def test_deepseek_r1_puts_bos_first_and_has_one_end(deepseek):
  facts = json.loads((DEEPSEEK / "facts.json").read_text())
  special = facts["special_tokens"]
  assert deepseek.eos_ids == (special[facts["eos"]],)
  assert deepseek.vocab_size <= facts["embedding_rows"]
  assert deepseek.prefix_ids == (special["<｜begin▁of▁sentence｜>"],)
  assert tokenizer.load(str(DEEPSEEK), bos=False).prefix_ids == ()
  ids = deepseek.encode("<think>\n1</think>")
  assert ids[0] == special["<think>"] and ids[-1] == special["</think>"]
  assert deepseek.decode(ids) == "<think>\n1</think>"


def write_json(path, **content):
  path.write_text(json.dumps(content))


def test_a_completion_may_end_with_any_of_several_eos_tokens(
  write_tokenizer, tmp_path
):
  folder = write_tokenizer(tmp_path)
  write_json(folder / "generation_config.json", eos_token_id=[7, 0])
  write_json(folder / "config.json", eos_token_id=9)
  loaded = tokenizer.load(str(folder))
  assert loaded.eos_ids == (0, 7, 9)  # What the tokenizer names comes first.
  ids = loaded.encode("the Assistant")
  assert loaded.decode([9, *ids, 7, 0]) == "the Assistant"
  (folder / "tokenizer_config.json").unlink()  # The others are enough.
  assert tokenizer.load(str(folder)).eos_ids == (7, 0, 9)


@pytest.mark.parametrize("wrong", [480, -1, "<eos>", True, 1.0, [0, None]])
def test_an_eos_outside_of_the_vocabulary_is_refused(
  write_tokenizer, tmp_path, wrong
):
  folder = write_tokenizer(tmp_path)
  write_json(folder / "generation_config.json", eos_token_id=wrong)
  value = wrong[-1] if isinstance(wrong, list) else wrong
  message = f"generation_config.json: eos_token_id {value!r} is not in the voc"
  with pytest.raises(ValueError, match=message):
    tokenizer.load(str(folder))


def test_bos_is_known_and_not_added_by_encode(write_tokenizer, tmp_path):
  folder = write_tokenizer(tmp_path)
  assert tokenizer.load(str(folder)).bos_id is None
  config = dict(
    eos_token="<eos>", bos_token={"content": "!"}, pad_token="<eos>"
  )
  write_json(folder / "tokenizer_config.json", **config, add_bos_token=True)
  loaded = tokenizer.load(str(folder))
  assert loaded.id_to_token(loaded.bos_id) == "!"
  assert loaded.bos_id not in loaded.encode("the Assistant")
  write_json(folder / "tokenizer_config.json", **config | dict(bos_token="??"))
  with pytest.raises(ValueError, match=r"bos_token '\?\?' is not in the voc"):
    tokenizer.load(str(folder))


def test_a_chat_template_is_read_from_any_of_three_files(
  write_tokenizer, tmp_path
):
  folder = write_tokenizer(tmp_path)
  load = lambda: tokenizer.load(str(folder)).chat_template
  config = folder / "tokenizer_config.json"
  assert load() is None
  write_json(config, eos_token="<eos>", chat_template="one")
  assert load() == "one"
  several = [
    dict(name="tool_use", template="two"),
    dict(name="default", template="three"),
  ]
  write_json(config, eos_token="<eos>", chat_template=several)
  assert load() == "three"
  write_json(config, eos_token="<eos>", chat_template=4)
  with pytest.raises(ValueError, match="chat_template must be text, got 4"):
    load()
  (folder / "chat_template.jinja").write_text("five \u8ba1", encoding="utf-8")
  assert load() == "five \u8ba1"


def test_tokenizer_json_is_preferred_to_tokenizer_model(
  folder, write_tokenizer, tmp_path
):
  write_tokenizer(tmp_path)
  (tmp_path / "tokenizer.model").write_bytes(
    (folder / "tokenizer.model").read_bytes()
  )
  assert isinstance(tokenizer.load(str(tmp_path)), tokenizer.HuggingFace)


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("tokenizer.json", b"{}"),
    ("tokenizer.json.gz", b"not zipped"),
    ("tokenizer.model", b"no model"),
    ("generation_config.json", b"{"),
    ("tokenizer_config.json", b"[]"),
  ],
)
def test_a_broken_file_is_named(write_tokenizer, tmp_path, name, content):
  write_tokenizer(tmp_path)
  if name.startswith("tokenizer."):
    (tmp_path / "tokenizer.json").unlink()
  (tmp_path / name).write_bytes(content)
  with pytest.raises(
    ValueError, match=f"{tmp_path / name} (is not|must hold) "
  ):
    tokenizer.load(str(tmp_path))


def test_names_of_special_tokens_can_be_encoded_as_ordinary_text(
  write_tokenizer, tmp_path
):
  loaded = tokenizer.load(str(write_tokenizer(tmp_path)))
  assert loaded.special_tokens == ("<eos>",)
  for text in ("<eos>", "a <eos><eos> b", "the Assistant"):
    ids = loaded.encode_ordinary(text)
    assert not {*ids} & {*loaded.eos_ids}
    assert loaded.decode(ids) == text
  assert loaded.encode("<eos>") == [0]
  assert loaded.encode_ordinary("the Assistant") == loaded.encode(
    "the Assistant"
  )


@pytest.fixture(scope="module", params=["sentencepiece", "bytes", "deepseek"])
def any_tokenizer(request, loaded, write_tokenizer, tmp_path_factory):
  if request.param == "sentencepiece":
    return loaded
  if request.param == "deepseek":
    return request.getfixturevalue("deepseek")
  return tokenizer.load(str(write_tokenizer(tmp_path_factory.mktemp("bytes"))))


def test_a_batch_is_decoded_as_its_sequences_are(any_tokenizer):
  encode, end = any_tokenizer.encode, any_tokenizer.eos_ids[0]
  sequences = [[*encode("7 ok"), end], [end, *encode("Wait,")], [end], []]
  arrays = [np.array(ids, np.int32) for ids in sequences]
  assert decode_batch(any_tokenizer, arrays) == [
    any_tokenizer.decode(ids) for ids in sequences
  ]


def pushed(loaded, parts):
  """What a stream gives out after each part, and at the end."""
  stream = tokenizer.TextStream(loaded)
  return [*map(stream.push, parts), stream.flush()]


def test_a_stream_returns_only_complete_characters(any_tokenizer):
  characters = "".join({*"".join(TEXTS)} - {*"</>"}) + " \n" * 9
  if any_tokenizer.vocab_size > 200:
    characters += "\u8ba1\U0001f600\u00e9\u0e2a\u2603"

  @settings(max_examples=200, deadline=None)
  @given(st.text(st.sampled_from(characters)), st.integers(1, 3))
  def streams(text, size):
    ids = any_tokenizer.encode(text)
    parts = [ids[i : i + size] for i in range(0, len(ids), size)]
    given = pushed(any_tokenizer, parts)
    assert "".join(given) == any_tokenizer.decode(ids)
    assert "\ufffd" not in "".join(given)

  streams()


def test_a_stream_of_any_ids_is_their_text(any_tokenizer):
  @settings(max_examples=300, deadline=None)
  @given(st.lists(st.integers(0, min(any_tokenizer.vocab_size, 400) - 1)))
  def streams(ids):
    given = pushed(any_tokenizer, [[i] for i in ids])
    assert "".join(given) == any_tokenizer.decode(ids)

  streams()


def test_a_stream_waits_only_for_incomplete_characters(
  write_tokenizer, tmp_path
):
  loaded = tokenizer.load(str(write_tokenizer(tmp_path)))
  ids = loaded.encode("a\U0001f600b")
  assert len(ids) == 6  # The face takes four.
  given = pushed(loaded, [[i] for i in ids])
  assert given == ["a", "", "", "", "\U0001f600", "b", ""]
  assert pushed(loaded, [[i] for i in ids[:3]]) == ["a", "", "", "\ufffd"]


def test_a_real_tokenizer_knows_where_a_conversation_begins(deepseek):
  assert deepseek.bos_id == 0
  assert deepseek.id_to_token(0) == "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
  assert "add_generation_prompt" in deepseek.chat_template
  facts = json.loads((DEEPSEEK / "facts.json").read_text())
  assert {*facts["special_tokens"]} <= {*deepseek.special_tokens}
  for name in facts["special_tokens"]:
    assert not {*deepseek.encode_ordinary(name)} & {
      *facts["special_tokens"].values()
    }
    assert deepseek.decode(deepseek.encode_ordinary(name)) == name
