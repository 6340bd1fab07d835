"""What a tokenizer's own files say of BOS, padding and special tokens."""

import json

import pytest

from r1jax.data import tokenizer


def write_json(path, **content):
  path.write_text(json.dumps(content))


def with_front(folder, *ids):
  """The tokenizer, with a post-processor that puts these before a text."""
  data = json.loads((folder / "tokenizer.json").read_text())
  names = {v: k for k, v in data["model"]["vocab"].items()}
  special = {
    names[i]: dict(id=names[i], ids=[i], tokens=[names[i]]) for i in ids
  }
  front = [dict(SpecialToken=dict(id=name, type_id=0)) for name in special]
  data["post_processor"] = dict(
    type="TemplateProcessing",
    single=[*front, dict(Sequence=dict(id="A", type_id=0))],
    pair=[dict(Sequence=dict(id=name, type_id=0)) for name in "AB"],
    special_tokens=special,
  )
  write_json(folder / "tokenizer.json", **data)


def test_the_tokenizer_says_whether_a_text_begins_with_bos(
  write_tokenizer, tmp_path
):
  folder = write_tokenizer(tmp_path)
  config = dict(eos_token="<eos>", bos_token="!")
  prefix = lambda **kwargs: tokenizer.load(str(folder), **kwargs).prefix_ids
  write = lambda **more: write_json(
    folder / "tokenizer_config.json", **config, **more
  )
  write()
  bos = tokenizer.load(str(folder)).bos_id
  assert (prefix(), prefix(bos=True), prefix(bos=False)) == ((), (bos,), ())
  write(add_bos_token=True)
  assert (prefix(), prefix(bos=True), prefix(bos=False)) == ((bos,), (bos,), ())
  with_front(folder, 5, 6)
  write(add_bos_token=False)
  assert (prefix(), prefix(bos=True)) == ((), (bos,))
  write()
  assert (prefix(), prefix(bos=False)) == ((5, 6), ())
  assert 5 not in tokenizer.load(str(folder)).encode("the Assistant")
  write_json(folder / "tokenizer_config.json", eos_token="<eos>")
  with pytest.raises(ValueError, match="bos is True, but .*names no bos_token"):
    prefix(bos=True)
  write_json(
    folder / "tokenizer_config.json", eos_token="<eos>", add_bos_token=True
  )
  assert prefix() == ()


def test_a_sentencepiece_tokenizer_begins_as_its_config_says(tmp_path):
  tokenizer.fit(["abc"] * 9, tmp_path / "tokenizer.model", word_share=0.5)
  assert tokenizer.load(str(tmp_path)).prefix_ids == ()
  assert tokenizer.load(str(tmp_path), bos=True).prefix_ids == (1,)
  write_json(tmp_path / "tokenizer_config.json", add_bos_token=True)
  assert tokenizer.load(str(tmp_path)).prefix_ids == (1,)
  assert tokenizer.load(str(tmp_path), bos=False).prefix_ids == ()


def test_truncation_and_padding_of_a_file_are_off(write_tokenizer, tmp_path):
  import tokenizers

  folder = write_tokenizer(tmp_path)
  plain = tokenizer.load(str(folder))
  path = str(folder / "tokenizer.json")
  words = tokenizers.Tokenizer.from_file(path)
  words.enable_truncation(4)
  words.enable_padding(length=64, pad_id=3)
  words.save(path)
  saved = json.loads((folder / "tokenizer.json").read_text())
  assert saved["truncation"] and saved["padding"]
  loaded = tokenizer.load(str(folder))
  for text in ("a", "the Assistant " * 30):
    assert loaded.encode(text) == plain.encode(text)
    assert loaded.encode_ordinary(text) == plain.encode_ordinary(text)
    assert loaded.decode(loaded.encode(text)) == text


def test_special_tokens_are_known_by_their_names(write_tokenizer, tmp_path):
  folder = write_tokenizer(tmp_path)
  assert tokenizer.load(str(folder)).special_tokens_map == dict(
    eos_token="<eos>"
  )
  write_json(
    folder / "special_tokens_map.json",
    pad_token="#",
    unk_token={"content": "?"},
    additional_special_tokens=["x"],
  )
  write_json(
    folder / "tokenizer_config.json",
    eos_token="<eos>",
    bos_token={"content": "!"},
    pad_token="<eos>",
    mask_token=None,
  )
  assert tokenizer.load(str(folder)).special_tokens_map == dict(
    eos_token="<eos>", bos_token="!", pad_token="<eos>", unk_token="?"
  )
