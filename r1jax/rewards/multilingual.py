"""Verifiable instructions that differ from IFEval's by their language.

M-IFEval (arXiv:2502.04688): Spanish, French and Japanese. What is the same in
every language stands in `instructions`.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from r1jax.rewards.counting import compare

ACCENTS = {"\u0300", "\u0301", "\u0302", "\u0308"}
QUOTES = {'"': '"', "«": "»", "“": "”", "「": "」", "『": "』"}
HIRAGANA, KATAKANA, KANJI = "ぁ-ゖ", "ァ-ヺ", "々〆一-鿿㐀-䶿"
JA_END = re.compile(r"[^。！？!?\n]+[。！？!?]*[」』）)]*")
JA_SIGNS = " \t\n。、！？!?「」『』（）()・…*#-:：「」0123456789.０-９"
CLOSING = "。！？!?」』）)*… \t"
# Endings of Japanese sentences that are no noun.
PREDICATE = re.compile(
  r"(?:です|ます|でした|ました|ません|ない|だ|である|いる|ある|する|した|なる|れる"
  r"|[うくぐすつぬぶむるいただねよかなのをにはがもへとでてん])$"
)
NUMERAL = r"0-9０-９一二三四五六七八九十"
NUMBERED = r"^[^\S\n]*[0-9０-９]+[^\S\n]*[.．]"
FORMAL = re.compile(r"\b(?:vous|votre|vos|vôtres?)\b", re.IGNORECASE)
INFORMAL = re.compile(
  r"\b(?:tu|te|toi|ton|ta|tes|tiens?|tiennes?)\b|\bt['’]", re.IGNORECASE
)


def _words_with(text: str, pattern: str) -> int:
  found = re.findall(r"\w+", unicodedata.normalize("NFC", text).lower())
  return sum(re.search(pattern, word) is not None for word in found)


def spanish_tildes(text: str, *, relation: str, num_words: int) -> bool:
  """So many words have a stressed vowel marked."""
  return compare(_words_with(text, "[áéíóú]"), relation, num_words)


def spanish_enie(text: str, *, let_frequency: int) -> bool:
  """Exactly so many words have the letter."""
  return _words_with(text, "ñ") == let_frequency


def spanish_dieresis(text: str, *, let_frequency: int) -> bool:
  """Exactly so many words have the letter."""
  return _words_with(text, "ü") == let_frequency


def has_questions(text: str) -> bool:
  """There is a question, in both of its marks."""
  return re.search(r"¿[^?¿]+\?", text) is not None


def has_exclamations(text: str) -> bool:
  """There is an exclamation, in both of its marks."""
  return re.search(r"¡[^!¡]+!", text) is not None


def informal_address(text: str) -> bool:
  """The reader is tu, and nowhere vous."""
  return bool(INFORMAL.search(text)) and not FORMAL.search(text)


def no_digits(text: str) -> bool:
  """There is no digit."""
  return not re.search(r"[0-9０-９]", text)


def accents(text: str, *, word_to_accentuate: Mapping[str, str]) -> bool:
  """Every word stands there with its accents."""
  said = {*re.findall(r"\w+", unicodedata.normalize("NFC", text).lower())}
  return all(word.lower() in said for word in word_to_accentuate.values())


def forbidden_character(text: str, *, forbidden_char: str) -> bool:
  """The character does not occur, in either case."""
  normal = unicodedata.normalize("NFC", text).lower()
  return forbidden_char.lower() not in normal


def no_accents(text: str) -> bool:
  """No letter has an accent; a cedilla is none."""
  return ACCENTS.isdisjoint(unicodedata.normalize("NFD", text))


def one_of(*options: str) -> Callable[[str], bool]:
  """A check that the response holds one of the options."""
  return lambda text: any(option in text for option in options)


def french_title(text: str) -> bool:
  """There is a ##title##."""
  return any(map(str.strip, re.findall(r"##([^#\n]+)##", text)))


def quotation(text: str) -> bool:
  """It stands in quotation marks, the language's own or not."""
  bare = text.strip()
  return len(bare) > 1 and QUOTES.get(bare[0]) == bare[-1]


def japanese_quotation(text: str) -> bool:
  """It stands in 「」."""
  bare = text.strip()
  return len(bare) > 1 and bare[0] == "「" and bare[-1] == "」"


def japanese_title(text: str) -> bool:
  """There is a 『title』."""
  return any(map(str.strip, re.findall(r"『([^『』\n]+)』", text)))


def japanese_comma(text: str) -> bool:
  """There is no comma of Japanese."""
  return not re.search("[、，]", text)


def japanese_period(text: str) -> bool:
  """There is no full stop of Japanese."""
  return "。" not in text


def japanese_highlights(text: str, *, num_highlights: int) -> bool:
  """At least so many parts stand in 《》."""
  return len(re.findall(r"《[^《》\n]+》", text)) >= num_highlights


def japanese_bullets(text: str, *, num_bullets: int) -> bool:
  """Exactly so many lines begin with ・."""
  return len(re.findall(r"^[^\S\n]*・", text, re.MULTILINE)) == num_bullets


def numbered_list(text: str, *, num_items: int) -> bool:
  """Exactly so many lines begin with a number and a stop."""
  found = re.findall(NUMBERED, text, re.MULTILINE)
  return len(found) == num_items


def japanese_sections(
  text: str, *, section_spliter: str, num_sections: int
) -> bool:
  """At least so many headings, as in 第1章."""
  pattern = rf"第\s*[{NUMERAL}]+\s*{re.escape(section_spliter)}"
  return len({*re.findall(pattern, text)}) >= num_sections


def number_letters(text: str, *, relation: str, num_letters: int) -> bool:
  """So many characters, without spaces."""
  return compare(len("".join(text.split())), relation, num_letters)


def japanese_sentences(text: str, *, relation: str, num_sentences: int) -> bool:
  """So many sentences; a line break ends one."""
  return compare(len(_sentences(text)), relation, num_sentences)


def japanese_forbidden(text: str, *, forbidden_words: Sequence[str]) -> bool:
  """Japanese has no spaces: a word is forbidden within others too."""
  return not any(word in text for word in forbidden_words)


def starts_paragraph(
  text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
  """So many paragraphs, of which one begins with the word."""
  parts = [part for part in text.split("\n\n") if part.strip()]
  if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
    return False
  start = parts[nth_paragraph - 1].strip().lstrip("「『\"'*¿¡").lower()
  return re.match(rf"{re.escape(first_word.lower())}", start) is not None


def nominal_ending(text: str, *, count: int) -> bool:
  """At least so many sentences that end in a noun."""
  ends = [sentence.rstrip(CLOSING) for sentence in _sentences(text)]
  nouns = [
    end
    for end in ends
    if re.search(rf"[{KANJI}{KATAKANA}ー]$", end)
    or (re.search(rf"[{HIRAGANA}]$", end) and not PREDICATE.search(end))
  ]
  return len(nouns) >= count


def unified_end(text: str, *, ending: str) -> bool:
  """Every sentence ends in the same words."""
  ends = [sentence.rstrip(CLOSING) for sentence in _sentences(text)]
  return all(end.endswith(ending) for end in ends if end)


def furigana(text: str) -> bool:
  """Every run of kanji has its reading in full-width brackets behind it."""
  runs = re.findall(rf"[{KANJI}]+", text)
  read = re.findall(
    rf"(?<![{KANJI}])[{KANJI}]+[（(][{HIRAGANA}{KATAKANA}ー]+[）)]", text
  )
  return len(runs) == len(read)


def kanji(text: str, *, relation: str, kanji_limit: int) -> bool:
  """So many kanji."""
  return compare(len(re.findall(rf"[{KANJI}]", text)), relation, kanji_limit)


def only(script: str) -> Callable[[str], bool]:
  """A check that all letters are of the script, in a character class."""
  allowed = re.compile(rf"[{script}ー]")
  return lambda text: all(
    allowed.match(char) for char in text if char.isalpha()
  )


def without(script: str) -> Callable[[str], bool]:
  """A check that no letter is of the script, in a character class."""
  return lambda text: not re.search(rf"[{script}]", text)


def _sentences(text: str) -> list[str]:
  found = (match[0].strip() for match in JA_END.finditer(text))
  return [part for part in found if part.strip(JA_SIGNS)]


CHECKS: dict[tuple[str, str], Callable[..., bool]] = {
  ("es", "punctuation:exclamation_marks"): has_exclamations,
  ("es", "punctuation:question_marks"): has_questions,
  ("es", "special_character:dieresis"): spanish_dieresis,
  ("es", "special_character:enie"): spanish_enie,
  ("es", "special_character:tildes"): spanish_tildes,
  ("es", "detectable_format:constrained_response"): one_of(
    "Sí.", "No.", "Quizás."
  ),
  ("es", "length_constraints:nth_paragraph_first_word"): starts_paragraph,
  ("es", "startend:quotation"): quotation,
  ("fr", "detectable_content:informal_address"): informal_address,
  ("fr", "detectable_content:no_digits"): no_digits,
  ("fr", "detectable_format:constrained_response"): one_of(
    "Oui.", "Non.", "Peut-être."
  ),
  ("fr", "detectable_format:title"): french_title,
  ("fr", "length_constraints:nth_paragraph_first_word"): starts_paragraph,
  ("fr", "special_character:accents"): accents,
  ("fr", "special_character:ethel_or_cedilla"): forbidden_character,
  ("fr", "special_character:no_accents"): no_accents,
  ("fr", "startend:quotation"): quotation,
  ("ja", "detectable_format:constrained_response"): one_of(
    "はい、そうです。", "いいえ、違います。", "どちらとも言えません。"
  ),
  ("ja", "detectable_format:multiple_sections"): japanese_sections,
  ("ja", "detectable_format:nominal_ending"): nominal_ending,
  ("ja", "detectable_format:number_bullet_lists"): japanese_bullets,
  ("ja", "detectable_format:number_highlighted_sections"): japanese_highlights,
  ("ja", "detectable_format:number_numbered_lists"): numbered_list,
  ("ja", "detectable_format:title"): japanese_title,
  ("ja", "keywords:forbidden_words"): japanese_forbidden,
  ("ja", "length_constraints:nth_paragraph_first_word"): starts_paragraph,
  ("ja", "length_constraints:number_letters"): number_letters,
  ("ja", "length_constraints:number_sentences"): japanese_sentences,
  ("ja", "letters:furigana"): furigana,
  ("ja", "letters:hiragana_only"): only(HIRAGANA),
  ("ja", "letters:kanji"): kanji,
  ("ja", "letters:kansuuji"): no_digits,
  ("ja", "letters:katakana_only"): only(KATAKANA),
  ("ja", "letters:no_hiragana"): without(HIRAGANA),
  ("ja", "letters:no_katakana"): without(KATAKANA),
  ("ja", "punctuation:no_comma"): japanese_comma,
  ("ja", "punctuation:no_period"): japanese_period,
  ("ja", "startend:quotation"): japanese_quotation,
  ("ja", "startend:sentence_unified_end"): unified_end,
}
