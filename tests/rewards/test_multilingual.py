"""M-IFEval: what its languages ask for beside IFEval's instructions."""

import pytest

from r1jax.rewards import instructions


@pytest.mark.parametrize(
  ("name", "kwargs", "good", "bad"),
  [
    ("es:punctuation:question_marks", {}, ["¿Qué?"], ["Qué?"]),
    ("es:punctuation:exclamation_marks", {}, ["¡Oh!"], ["Oh!"]),
    ("es:special_character:enie", dict(let_frequency=1), ["año"], ["año niño"]),
    (
      "es:special_character:tildes",
      dict(relation="al menos", num_words=2),
      ["así será"],
      ["así"],
    ),
    ("es:startend:quotation", {}, ["«sí»", '"sí"'], ["sí"]),
    (
      "es:length_constraints:number_words",
      dict(relation="como máximo", num_words=2),
      ["uno dos"],
      ["uno dos tres"],
    ),
    (
      "fr:detectable_content:informal_address",
      {},
      ["Tu viens ?"],
      ["Vous venez ?", "On vient ?"],
    ),
    ("fr:detectable_content:no_digits", {}, ["dix"], ["10"]),
    ("fr:special_character:no_accents", {}, ["garçon"], ["été"]),
    (
      "fr:special_character:ethel_or_cedilla",
      dict(forbidden_char="œ"),
      ["coeur"],
      ["cœur", "Œuf"],
    ),
    (
      "fr:special_character:accents",
      dict(word_to_accentuate={"ecole": "école"}),
      ["L'école."],
      ["ecole"],
    ),
    ("fr:detectable_format:title", {}, ["##Oui##"], ["<<Oui>>", "####"]),
    ("ja:letters:hiragana_only", {}, ["みず、です。"], ["水です", "ミズ"]),
    ("ja:letters:katakana_only", {}, ["ミズー。"], ["みず"]),
    ("ja:letters:no_katakana", {}, ["水です"], ["ミズ"]),
    ("ja:letters:furigana", {}, ["水（みず）です"], ["水です"]),
    (
      "ja:letters:kanji",
      dict(relation="以上", kanji_limit=2),
      ["水道"],
      ["水"],
    ),
    ("ja:letters:kansuuji", {}, ["三つ"], ["3つ", "３つ"]),
    ("ja:punctuation:no_comma", {}, ["水です。"], ["水、です"]),
    ("ja:punctuation:no_period", {}, ["水です"], ["水です。"]),
    ("ja:startend:quotation", {}, ["「水」"], ["水"]),
    (
      "ja:startend:sentence_unified_end",
      dict(ending="です"),
      ["水です。火です。"],
      ["水です。火だ。"],
    ),
    (
      "ja:detectable_format:nominal_ending",
      dict(count=1),
      ["美しい山。水です。"],
      ["水です。火がある。"],
    ),
    (
      "ja:detectable_format:number_numbered_lists",
      dict(num_items=2),
      ["1. 水\n2. 火"],
      ["1. 水"],
    ),
    (
      "ja:detectable_format:multiple_sections",
      dict(section_spliter="章", num_sections=2),
      ["第1章 水\n第2章 火"],
      ["第1章"],
    ),
    (
      "ja:length_constraints:number_letters",
      dict(relation="未満", num_letters=3),
      ["水 火"],
      ["水火土"],
    ),
    (
      "ja:length_constraints:number_sentences",
      dict(relation="以上", num_sentences=2),
      ["水だ。火だ。"],
      ["水だ。"],
    ),
  ],
)
def test_other_languages_have_kinds_of_their_own(name, kwargs, good, bad):
  for text in good:
    assert instructions.follows(text, name, kwargs), text
  for text in bad:
    assert not instructions.follows(text, name, kwargs), text
