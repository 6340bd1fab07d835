"""Tokenizers that know the special tokens of conversations."""

import copy
import json
import pathlib

import pytest

from r1jax.data import tokenizer

DEEPSEEK = (
  pathlib.Path(__file__).parents[3] / "shared/data/reference/deepseek_r1"
)
BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
NAMES = [
  *(BEGIN, END, "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"),
  *("<|im_start|>", "<|im_end|>"),
]
# Trims, cuts thoughts off, and refuses: what real templates do with a text.
CHATML = """
{%- if messages[0]['role'] == 'tool' %}
  {{- raise_exception('no tools') }}
{%- endif %}
{%- for message in messages %}
  {%- set content = message.content.split('</think>')[-1] | trim %}
  {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


@pytest.fixture(scope="module")
def small(write_tokenizer, tmp_path_factory):
  """A byte-level tokenizer that has DeepSeek's and ChatML's special tokens."""
  import tokenizers

  folder = write_tokenizer(tmp_path_factory.mktemp("small"), eos=END)
  path = str(folder / "tokenizer.json")
  loaded = tokenizers.Tokenizer.from_file(path)
  add = lambda name: tokenizers.AddedToken(name, special=name == END)
  loaded.add_tokens([*map(add, NAMES)])
  loaded.save(path)
  config = dict(eos_token=END, pad_token=END, bos_token=BEGIN)
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  return tokenizer.load(str(folder))


@pytest.fixture(scope="module")
def deepseek():
  """The released tokenizer."""
  if not DEEPSEEK.exists():
    pytest.skip(f"{DEEPSEEK} is absent")
  return tokenizer.load(str(DEEPSEEK))


@pytest.fixture(scope="module", name="tokenizer", params=["small", "deepseek"])
def any_tokenizer(request):
  """Tokenizers with DeepSeek's special tokens."""
  return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def with_template():
  """`with_template(tokenizer, source)`: the tokenizer with another template."""

  def change(tokenizer, source, **changes):
    changed = copy.copy(tokenizer)
    vars(changed).update(chat_template=source, **changes)
    return changed

  return change


@pytest.fixture
def chatml(small, with_template):
  """The small tokenizer with ChatML for its template, and its mark for EOS."""
  ends = (*small.eos_ids, *small.encode("<|im_end|>"))
  return with_template(small, CHATML, eos_ids=ends)


@pytest.fixture
def golden(deepseek):
  """Conversations as the released template renders them."""
  lines = (DEEPSEEK / "chat_template_golden.jsonl").read_text().splitlines()
  assert len(lines) > 8
  return [json.loads(line) for line in lines]
