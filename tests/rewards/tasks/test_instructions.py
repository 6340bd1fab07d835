"""IFEval: a response that follows each instruction, and one that does not."""

import pathlib

import pytest

from r1jax.data import jsonl
from r1jax.rewards import accuracy, sentences
from r1jax.rewards.tasks import instructions
from r1jax.types import Completion, Example

EVAL = pathlib.Path(__file__).parents[3] / "../shared/data/eval"
AT_LEAST, LESS = dict(relation="at least"), dict(relation="less than")
ENGLISH = "this is a plain sentence about the weather in the mountains."

# (kind, arguments, responses that follow it, responses that do not)
CASES = [
  (
    "keywords:existence",
    dict(keywords=["Mom", "cat"]),
    ["A cat and my MOM.", "moms concatenate"],
    ["cat", ""],
  ),
  ("keywords:existence", dict(keywords=["a+b"]), ["say a+b"], ["aab"]),
  (
    "keywords:frequency",
    dict(keyword="war", frequency=2, **AT_LEAST),
    ["War and war", "warfare, wars"],
    ["war", "peace"],
  ),
  (
    "keywords:frequency",
    dict(keyword="war", frequency=2, **LESS),
    ["war", "peace"],
    ["war war"],
  ),
  (
    "keywords:forbidden_words",
    dict(forbidden_words=["rock", "jazz band"]),
    ["rocks", "jazz"],
    ["Rock!", "a JAZZ BAND"],
  ),
  (
    "keywords:letter_frequency",
    dict(letter="q", let_frequency=2, let_relation="at least"),
    ["qQ"],
    ["q"],
  ),
  (
    "keywords:letter_frequency",
    dict(letter="!", let_frequency=2, let_relation="less than"),
    ["oh!", "oh"],
    ["oh!!"],
  ),
  (
    "length_constraints:number_words",
    dict(num_words=3, **AT_LEAST),
    ["one two three", "well-known fact"],
    ["one two", "a b."],
  ),
  (
    "length_constraints:number_words",
    dict(num_words=3, **LESS),
    ["one two"],
    ["one two three"],
  ),
  (
    "length_constraints:number_sentences",
    dict(num_sentences=2, **AT_LEAST),
    ["One. Two.", "Really? Yes", "Mr. X left. He is out."],
    ["One.", "Mr. Smith left at 3.5 p.m. today"],
  ),
  (
    "length_constraints:number_sentences",
    dict(num_sentences=2, **LESS),
    ["One\n\nand no more", "e.g. this one"],
    ["One! Two!"],
  ),
  (
    "length_constraints:number_paragraphs",
    dict(num_paragraphs=2),
    ["a\n***\nb", "***\na\n***\nb\n***", "a *** b"],
    ["a\n\nb", "a\n***\n***\nb", "a\n***\nb\n***\nc", "***"],
  ),
  (
    "length_constraints:number_paragraphs",
    dict(num_paragraphs=1),
    ["a", "a\n***", "***\na"],
    ["a\n***\nb"],
  ),
  (
    "length_constraints:nth_paragraph_first_word",
    dict(num_paragraphs=2, nth_paragraph=2, first_word="Elm"),
    ["a\n\nelm trees", 'a\n\n"Elm," he said', "a\n\nElm's\n\n"],
    ["a\n\noak", "elm\n\na", "a\n\nelms", "a\n\nelm\n\nb", "elm"],
  ),
  (
    "language:response_language",
    dict(language="de"),
    ["Das ist ein Satz über das Wetter in den Bergen."],
    [ENGLISH],
  ),
  (
    "language:response_language",
    dict(language="hi"),
    ["यह पहाड़ों के मौसम के बारे में एक वाक्य है।"],
    [ENGLISH],
  ),
  (
    "language:response_language",
    dict(language="ko"),
    ["이것은 날씨에 관한 문장입니다."],
    ["これは天気の文です。"],
  ),
  (
    "detectable_content:number_placeholders",
    dict(num_placeholders=2),
    ["[name] at [address]"],
    ["[name]", "[name\n] [x"],
  ),
  (
    "detectable_content:postscript",
    dict(postscript_marker="P.S."),
    ["Bye.\nP.S. I will", "p. s. so"],
    ["Bye.", "PS so"],
  ),
  (
    "detectable_content:postscript",
    dict(postscript_marker="P.P.S"),
    ["Bye.\nP.P.S. I will", "P. P. S so"],
    ["P.S. so"],
  ),
  (
    "detectable_format:number_bullet_lists",
    dict(num_bullets=2),
    ["* a\n* b", "- a\n- b", "so:\n  * a\n- b\nend", "*a\n*b"],
    ["* a", "* a\n* b\n* c", "** a\n** b", "1. a\n2. b"],
  ),
  (
    "detectable_format:constrained_response",
    {},
    ["My answer is yes.", " My answer is maybe. "],
    ["Yes.", "My answer is"],
  ),
  (
    "detectable_format:number_highlighted_sections",
    dict(num_highlights=2),
    ["*a* and *b*", "**a** and *b*", "**a** **b**"],
    ["*a*", "* a\n* b", "** **", "**a**"],
  ),
  (
    "detectable_format:multiple_sections",
    dict(section_spliter="SECTION", num_sections=2),
    ["SECTION 1\na\nSECTION 2\nb", "SECTION 1 a SECTION 2 b SECTION 3"],
    ["SECTION 1 a", "Section 1 a\nSection 2 b", "SECTION A SECTION B"],
  ),
  (
    "detectable_format:json_format",
    {},
    ['{"a": 1}', '```json\n{"a": [1]}\n```', "```\n[1]\n```", "3"],
    ["{'a': 1}", 'so {"a": 1}', "[" * 100_000, "```json\n```"],
  ),
  (
    "detectable_format:title",
    {},
    ["<<poem of joy>>\nOnce", "a <<b>> c"],
    ["<poem>", "<< >>", "<<a\nb>>"],
  ),
  (
    "combination:two_responses",
    {},
    ["a******b", "******a******b******"],
    ["a", "a******a", "a******b******c", "a************b"],
  ),
  (
    "combination:repeat_prompt",
    dict(prompt_to_repeat="Write a poem."),
    ["Write a poem. Roses", " write a POEM.\nRoses"],
    ["Sure. Write a poem."],
  ),
  (
    "startend:end_checker",
    dict(end_phrase="Peace!"),
    ["Bye. Peace!", 'So "peace!"\n'],
    ["Peace! Bye.", "Peace"],
  ),
  (
    "startend:quotation",
    {},
    ['"all of it"', ' "a" and "b" '],
    ['"', "'all'", '"a" b', "“a”"],
  ),
  (
    "change_case:english_capital",
    {},
    [ENGLISH.upper()],
    [
      ENGLISH,
      ENGLISH.upper() + " a",
      "DAS IST EIN SATZ ÜBER DAS WETTER IN DEN BERGEN.",
    ],
  ),
  (
    "change_case:english_lowercase",
    {},
    [ENGLISH],
    [ENGLISH.title(), "das ist ein satz über das wetter in den bergen."],
  ),
  (
    "change_case:capital_word_frequency",
    dict(capital_frequency=2, capital_relation="at least"),
    ["NASA and ESA.", "I AM", "U.S. AND-OR", '"YES," SHE said'],
    ["NASA and Esa", "a 1 2"],
  ),
  (
    "change_case:capital_word_frequency",
    dict(capital_frequency=2, capital_relation="less than"),
    ["NASA is it", "none"],
    ["NASA and ESA"],
  ),
  ("punctuation:no_comma", {}, ["a and b"], ["a, b", ","]),
]


def wrap(text: str) -> Completion:
  return Completion(f"<think>1, 2, and 3</think>{text}")


def example(*pairs) -> Example:
  names, kwargs = [name for name, _ in pairs], [given for _, given in pairs]
  metadata = dict(instruction_id_list=names, kwargs=kwargs)
  return Example("", "", "instructions", "if/1", metadata)


@pytest.mark.parametrize(("name", "kwargs", "good", "bad"), CASES)
def test_a_response_follows_an_instruction_or_not(name, kwargs, good, bad):
  for text in good:
    assert instructions.follows(text, name, kwargs), text
  for text in bad:
    assert not instructions.follows(text, name, kwargs), text


def test_every_kind_is_tried_above():
  english = {k for k in instructions.CHECKS if "french" not in k}
  english = {k for k in english if "spanish" not in k}
  assert english == {name for name, *_ in CASES}
  assert len(english) == 25


def test_all_instructions_must_be_followed():
  both = example(
    ("punctuation:no_comma", {}), ("startend:quotation", {"unused": None})
  )
  assert instructions.reward(both, wrap('"yes"')) == 1.0
  assert instructions.reward(both, wrap('"yes, so"')) == 0.0
  assert instructions.reward(both, wrap('"yes, so"'), partial=True) == 0.5
  assert accuracy.reward(both, wrap('"yes"')) == 1.0


def test_the_thinking_is_not_the_response():
  commas = example(("punctuation:no_comma", {}))
  assert instructions.reward(commas, wrap("no")) == 1.0
  assert instructions.reward(commas, Completion("no")) == 0.0
  assert instructions.reward(commas, wrap("<answer>no</answer>")) == 1.0
  quoted = example(("startend:quotation", {}))
  assert instructions.reward(quoted, wrap('<answer>"no"</answer>')) == 1.0


def test_a_kind_or_relation_that_is_not_known_is_named():
  with pytest.raises(ValueError, match="unknown instruction 'a:b'"):
    instructions.follows("x", "a:b", {})
  with pytest.raises(
    ValueError, match="relation must be 'at least' or 'less than', got 'about'"
  ):
    instructions.follows(
      "x",
      "length_constraints:number_words",
      dict(relation="about", num_words=1),
    )
  with pytest.raises(ValueError, match="'if/1'.*needs 'instruction_id_list'"):
    instructions.reward(Example("", "", "", "if/1"), wrap("x"))


@pytest.mark.parametrize(
  ("text", "count"),
  [
    ("", 0),
    ("One", 1),
    ("One. Two. Three.", 3),
    ("Dr. Smith paid $3.50. He left.", 2),
    ("J. R. Smith wrote it.", 1),
    ("It was me and I. Then it rained.", 2),
    ("We met at 5 p.m. He left. Apples, pears, etc. are fruit.", 3),
    ("The U.S. Government paid. Vitamin C. It helps.", 3),
    ("No way!? Yes... Perhaps.", 3),
    ('He said "Stop." She did.', 2),
    ("a\n\nb\n\nc", 1),
    ("一。二！三？", 3),
    ("1. apples.", 1),
    ("1. Apples. 2. Pears.", 2),
    ("Buy:\n1. apples.\n2. pears.", 2),
    ("**1.** Go on.\n(b). Stop.\niv. Rest.", 3),
    ("1.2. Its scope. Its end.", 2),
    ("It was in 1990. Then he had 5. She left.", 3),
  ],
)
def test_sentences_are_counted(text, count):
  assert len(sentences.split(text)) == count


@pytest.mark.skipif(not EVAL.exists(), reason="there is no ../shared/data")
def test_every_instruction_of_the_benchmark_can_be_checked():
  for _, row in jsonl.read(EVAL / "ifeval.jsonl"):
    kinds, kwargs = row["instruction_id_list"], row["kwargs"]
    for kind, given in zip(kinds, kwargs, strict=True):
      assert instructions.follows("So it is.", kind, given) in (True, False)
