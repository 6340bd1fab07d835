"""Language consistency: a share of words, and what is no word of any."""

import collections
import json
import pathlib

import pytest

from r1jax.data import jsonl
from r1jax.rewards import function_words, language
from r1jax.types import Completion, Example

SHARED = pathlib.Path(__file__).parents[2] / "../shared"
EVAL = SHARED / "data/eval"
CASES = SHARED / "cases/language.jsonl"
needs_data = pytest.mark.skipif(
  not EVAL.exists(), reason="there is no ../shared/data"
)
ENGLISH = "We add the two numbers and then divide the sum by four."
GERMAN = "Wir addieren die beiden Zahlen und teilen dann die Summe durch vier."
CHINESE = "我们先把两个数相加再除以四。"


def reward(text: str, prompt: str = "How much is it?", **kwargs) -> float:
  completion = Completion(f"<think>{text}</think><answer>12</answer>")
  return language.reward(Example(prompt, ""), completion, **kwargs)


@pytest.mark.parametrize(
  ("code", "text"),
  [
    ("en", ENGLISH),
    ("de", GERMAN),
    ("zh", CHINESE),
    (
      "fr",
      "Nous additionnons les deux nombres, puis nous divisons par quatre.",
    ),
    ("es", "Sumamos los dos números y luego dividimos la suma entre cuatro."),
    ("it", "Sommiamo i due numeri e poi dividiamo la somma per quattro."),
    ("pt", "Somamos os dois números e depois dividimos a soma por quatro."),
    ("sw", "Tunajumlisha nambari hizi mbili kisha tunagawanya kwa nne."),
    ("vi", "Chúng ta cộng hai số rồi chia tổng cho bốn."),
    ("fi", "Laskemme luvut yhteen ja jaamme sitten summan neljällä."),
    ("ru", "Мы складываем два числа и затем делим сумму на четыре."),
    ("bg", "Събираме двете числа и след това делим сбора на четири."),
    ("uk", "Ми додаємо два числа, а потім ділимо суму на чотири."),
    ("ja", "二つの数を足してから四で割ります。"),
    ("ko", "두 수를 더한 다음 합을 넷으로 나눕니다."),
    ("th", "เราบวกจำนวนทั้งสองแล้วหารด้วยสี่"),
    ("bn", "আমরা দুটি সংখ্যা যোগ করি এবং চার দিয়ে ভাগ করি।"),
    ("te", "మేము రెండు సంఖ్యలను కలిపి నాలుగుతో భాగిస్తాము."),
    ("ta", "இரண்டு எண்களையும் கூட்டி நான்கால் வகுக்கிறோம்."),
    ("kn", "ನಾವು ಎರಡು ಸಂಖ್ಯೆಗಳನ್ನು ಕೂಡಿಸಿ ನಾಲ್ಕರಿಂದ ಭಾಗಿಸುತ್ತೇವೆ."),
    ("gu", "આપણે બે સંખ્યાઓ ઉમેરીએ છીએ અને ચાર વડે ભાગીએ છીએ."),
    ("pa", "ਅਸੀਂ ਦੋ ਸੰਖਿਆਵਾਂ ਜੋੜਦੇ ਹਾਂ ਅਤੇ ਚਾਰ ਨਾਲ ਵੰਡਦੇ ਹਾਂ।"),
    ("hi", "हम दो संख्याओं को जोड़ते हैं और फिर चार से भाग देते हैं।"),
    ("mr", "आपण दोन संख्या मिळवतो आणि नंतर चारने भागतो."),
    ("ne", "हामी दुई संख्या जोड्छौं र त्यसपछि चारले भाग गर्छौं, यो सजिलो छ।"),
    ("ar", "نجمع العددين ثم نقسم المجموع على أربعة."),
    ("fa", "ما دو عدد را جمع می‌کنیم و سپس بر چهار تقسیم می‌کنیم."),
    ("ur", "ہم دونوں اعداد کو جمع کرتے ہیں اور پھر چار سے تقسیم کرتے ہیں۔"),
    ("el", "Προσθέτουμε τους δύο αριθμούς και διαιρούμε με το τέσσερα."),
    ("he", "אנחנו מחברים את שני המספרים ומחלקים בארבע."),
  ],
)
def test_a_language_is_known_by_its_script_or_its_words(code, text):
  assert language.identify(text) == code
  assert reward(text, target=code) == 1.0


def test_the_reward_is_the_share_of_words():
  assert reward(ENGLISH) == 1.0
  assert reward(CHINESE) == 0.0
  assert reward(f"{ENGLISH} {CHINESE}") == pytest.approx(12 / 25)
  assert reward(f"{ENGLISH}\n{GERMAN}") == pytest.approx(12 / 24)
  assert reward(f"{ENGLISH} {GERMAN}", target="de") == pytest.approx(12 / 24)


def test_the_target_is_the_prompts_language_or_the_one_asked_for():
  assert reward(CHINESE, prompt="这个数是多少？") == 1.0
  assert reward(ENGLISH, prompt="这个数是多少？") == 0.0
  assert reward(ENGLISH, prompt="这个数是多少？", target="en") == 1.0
  asked = Example("Think in German.", "", metadata=dict(language="de"))
  assert language.reward(asked, Completion(f"{GERMAN}</think>")) == 1.0


def test_a_prompt_without_words_asks_for_one_language_only():
  assert reward(CHINESE, prompt="1 + 11 =") == 1.0
  assert reward(ENGLISH, prompt="$x^2 = 4$") == 1.0
  assert reward(f"{ENGLISH} {CHINESE}", prompt="12") == pytest.approx(13 / 25)


@pytest.mark.parametrize(
  "noise",
  [
    "$\\text{summe} = \\alpha + \\pi$",
    "\\[ \\frac{\\text{Weg}}{\\text{Zeit}} \\]",
    "\\begin{align} Weg &= Zeit \\end{align}",
    "```python\nsumme = zahlen_addieren(zahlen)\n```",
    "`zahlen_addieren`",
    "https://example.org/das/ist/ein/deutscher/satz",
    "17, 3.5 and 1,000",
    "π, α, x, y and β.",
  ],
)
def test_formulas_code_numbers_and_addresses_are_not_words(noise):
  assert reward(f"{ENGLISH} {noise} {ENGLISH}") == 1.0


def test_money_does_not_hide_words():
  text = f"It costs $10 and so on. {GERMAN} Then it costs $20 in all."
  assert 0.4 < reward(text) < 0.6


def test_only_the_thinking_counts():
  completion = Completion(f"<think>{ENGLISH}</think>{CHINESE}")
  assert language.reward(Example("How?", ""), completion) == 1.0
  cut = Completion(f"<think>{ENGLISH} {CHINESE}")
  assert language.reward(Example("How?", ""), cut) == pytest.approx(12 / 25)


def test_thoughts_without_words_get_0():
  for text in ("", " \n", "12 + 13", "$x$", "\0\u202e\ud800"):
    assert reward(text) == 0.0
  assert reward("The end\ud800 has come to us.") == 1.0


@pytest.mark.parametrize(
  ("target", "text", "value"),
  [
    ("ru", "Кот спит на диване.", 1),
    ("ru", "Лена взяла книгу.", 1),
    ("ru", "Папа варит суп.", 1),
    ("ru", "Тя даде на Петър пет лева.", 0),
    ("ru", "Къде е книгата?", 0),
    ("ru", "Спочатку додамо числа і їх порівняємо.", 0),
    ("ru", "Днес времето е много хубаво.", 0),
    ("bg", "Мой брат учится в университете.", 0),
    ("bg", "Сестра ми пее добре.", 1),
    ("bg", "Дети играли во дворе, и мы пошли к ним.", 0),
    ("uk", "Оленка взяла книгу.", 1),
    ("mr", "बारा रुपये उरले.", 1),
    ("mr", "राम ने तीन सेब खरीदे।", 0),
    ("hi", "उत्तर सात है।", 1),
    ("hi", "मुले बाहेर खेळत आहेत.", 0),
    ("ne", "पहिले हामी जोड्छौं।", 1),
    ("ne", "आज ठंड है।", 0),
    ("mr", "बाबा कामावर गेले.", 1),
    ("hi", "म भात खान्छु।", 0),
    ("en", "Anna had ten pens.", 1),
    ("en", "Six men dug wells.", 1),
    ("en", "Ken got wet.", 1),
    ("en", "Let me see.", 1),
    ("en", "WINTER GARDEN", 1),
    ("en", "Ted met Ken in Dresden.", 1),
    ("en", "1. apples. 2. pears. 3. plums.", 1),
    ("en", "1. pommes de terre. 2. les poires et les prunes.", 0),
    ("en", "LE CHAT NOIR EST ICI", 0),
    ("en", "Min bror bor i Stockholm.", 0),
    ("en", "Wij eten brood.", 0),
    ("en", "La respuesta es siete.", 0),
    ("en", "Er hat zehn Eier.", 0),
    ("de", "Nina postet Selfies.", 1),
    ("de", "Das Meeting war cool.", 1),
    ("de", "We checked the mails.", 0),
    ("nl", "Jan koopt drie appels.", 1),
    ("fr", "Jean a 30 sucettes.", 1),
    ("nl", "Hens lend ten eggs. He pretends in jest. They sold the boat.", 0),
  ],
)
def test_a_short_text_is_in_the_language_asked_for_if_it_may_be(
  target, text, value
):
  assert reward(text, target=target) == value


@pytest.mark.skipif(not CASES.exists(), reason="there is no ../shared/cases")
def test_every_known_case_is_right():
  for line in CASES.read_text(encoding="utf-8").splitlines():
    case = json.loads(line)
    right = reward(case["text"], target=case["language"]) > 0.5
    assert right == bool(case.get("want", 1)), case


def test_a_function_word_is_listed_with_each_of_its_languages():
  codes = {code for shared in language.SHARED.values() for code in shared}
  assert function_words.WORDS.keys() == codes
  assert function_words.BY_WORD["in"] == {"en", "de", "nl", "it"}
  assert [*function_words.matches("«Het» Ы, x")] == [{"nl"}, {"ru"}]


@needs_data
def test_real_sentences_are_identified():
  """549 of 550 are; see the counts of what is missed if this fails."""
  rows = [row for _, row in jsonl.read(EVAL / "langid_sentences_dev.jsonl")]
  missed = collections.Counter()
  for row in rows:
    if (found := language.identify(row["text"])) != row["lang"]:
      missed[row["lang"], found] += 1
  assert sum(missed.values()) <= 1, missed


@needs_data
def test_mixed_text_is_measured():
  path = EVAL / "lang_consistency_mixed_dev.jsonl"
  rows = [row for _, row in jsonl.read(path)]
  errors = [
    abs(reward(r["text"], target=r["target_lang"]) - r["target_word_fraction"])
    for r in rows
  ]
  assert sum(errors) / len(errors) <= 0.0035
