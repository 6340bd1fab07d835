"""General requests in English and Chinese, and answers of known faults.

A request is of a kind, such as a greeting, and has a topic and the name of the
person who asks. Each of them is worded in both languages. The reward `quality`
measures an answer by the metadata of its request.
"""

import random
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from r1jax.data.split import in_test
from r1jax.types import Example

LANGUAGES = ("en", "zh")
SPLITS = ("train", "test")
FAULTS = ("name", "topic", "language", "sentence", "repeat", "short")
MAX_DRAWS = 1000  # Draws without a request of the split.

NAMES = (
  ("Anna", "安娜"),
  ("Tom", "汤姆"),
  ("Lily", "莉莉"),
  ("Ben", "本恩"),
  ("Lucy", "露西"),
  ("Jack", "杰克"),
  ("Emma", "艾玛"),
  ("David", "大卫"),
  ("Mary", "玛丽"),
  ("Peter", "彼得"),
  ("Amy", "艾米"),
  ("Paul", "保罗"),
  ("Nina", "妮娜"),
  ("Leo", "里奥"),
  ("Sara", "萨拉"),
  ("Max", "马克"),
)


class Topic(NamedTuple):
  """A topic of a kind; pairs are in English and Chinese."""

  request: tuple[str, str]
  answer: tuple[str, str]
  # For each idea that an answer should express, words of which it needs one.
  ideas: tuple[tuple[str, ...], ...]


def _greeting(en: str, zh: str) -> Topic:
  return Topic(
    (f"{en}, I am {{name}}.", f"{zh}，我是{{name}}。"),
    (
      f"{en}, {{name}}, how can I help you?",
      f"{zh}，{{name}}，有什么可以帮你？",
    ),
    ((en, zh), ("help", "帮")),
  )


def _thanks(en: str, zh: str) -> Topic:
  return Topic(
    (
      f"I am {{name}}. Thank you for the {en}.",
      f"我是{{name}}。谢谢你的{zh}。",
    ),
    (
      f"You are welcome, {{name}}, I am glad that the {en} was good.",
      f"不客气，{{name}}，很高兴这个{zh}有用。",
    ),
    (("welcome", "不客气"), (en, zh)),
  )


def _advice(kind, item, reason) -> Topic:
  return Topic(
    (
      f"I am {{name}}. Which {kind[0]} is good for me?",
      f"我是{{name}}。什么{kind[1]}适合我？",
    ),
    (
      f"{{name}}, I recommend {item[0]} because {reason[0]}.",
      f"{{name}}，我推荐{item[1]}，因为{reason[1]}。",
    ),
    ((item[0], item[1]), ("because", "因为")),
  )


def _sentence(thing, what, mark) -> Topic:
  return Topic(
    (
      f"I am {{name}}. Tell me about the {thing[0]}.",
      f"我是{{name}}。说说{thing[1]}。",
    ),
    (
      f"{{name}}, the {thing[0]} {what[0]}.",
      f"{{name}}，{thing[1]}{what[1]}。",
    ),
    ((f"the {thing[0]}", thing[1]), mark),
  )


def _self(question, answer, ideas) -> Topic:
  return Topic(
    (f"I am {{name}}. {question[0]}", f"我是{{name}}。{question[1]}"),
    (f"{{name}}, {answer[0]}", f"{{name}}，{answer[1]}"),
    ideas,
  )


def _refusal(en: str, zh: str) -> Topic:
  return Topic(
    (f"I am {{name}}. Help me to {en}.", f"我是{{name}}。帮我{zh}。"),
    (
      f"Sorry, {{name}}, I cannot help you to {en}.",
      f"对不起，{{name}}，我不能帮你{zh}。",
    ),
    (("sorry", "对不起"), ("cannot", "不能")),
  )


# The topics of every kind, and what one thinks before an answer of the kind.
KINDS: dict[str, tuple[Topic, ...]] = {
  "greeting": (
    _greeting("Hello", "你好"),
    _greeting("Good morning", "早上好"),
    _greeting("Good evening", "晚上好"),
    _greeting("Welcome back", "欢迎回来"),
  ),
  "thanks": (
    _thanks("help", "帮助"),
    _thanks("answer", "回答"),
    _thanks("story", "故事"),
    _thanks("gift", "礼物"),
  ),
  "advice": (
    _advice(
      ("fruit", "水果"), ("apples", "苹果"), ("they are sweet", "它很甜")
    ),
    _advice(("drink", "饮料"), ("tea", "茶"), ("it is warm", "它很暖")),
    _advice(("sport", "运动"), ("swimming", "游泳"), ("it is fun", "它有趣")),
    _advice(("pet", "宠物"), ("a cat", "猫"), ("it is quiet", "它安静")),
    _advice(("colour", "颜色"), ("blue", "蓝色"), ("it is calm", "它平和")),
    _advice(("season", "季节"), ("spring", "春天"), ("it is green", "它很绿")),
  ),
  "sentence": (
    _sentence(
      ("moon", "月亮"), ("shines at night", "在夜里发光"), ("night", "夜")
    ),
    _sentence(("sun", "太阳"), ("gives us light", "给我们光"), ("light", "光")),
    _sentence(("sea", "大海"), ("is deep", "很深"), ("deep", "深")),
    _sentence(("snow", "雪"), ("is white", "是白的"), ("white", "白")),
    _sentence(("rain", "雨"), ("makes us wet", "让人湿"), ("wet", "湿")),
    _sentence(("tree", "树"), ("has leaves", "有叶子"), ("leaves", "叶")),
    _sentence(("bird", "鸟"), ("can fly", "会飞"), ("fly", "飞")),
    _sentence(("dog", "狗"), ("likes to run", "喜欢跑"), ("run", "跑")),
    _sentence(("flower", "花"), ("smells good", "很香"), ("smells", "香")),
    _sentence(("river", "河"), ("is long", "很长"), ("long", "长")),
  ),
  "self": (
    _self(
      ("Who are you?", "你是谁？"),
      ("I am a small language model.", "我是一个小的语言模型。"),
      (("i am", "我是"), ("language model", "语言模型")),
    ),
    _self(
      ("What is your name?", "你叫什么？"),
      ("my name is R1.", "我的名字叫R1。"),
      (("name", "名字"), ("r1",)),
    ),
    _self(
      ("Are you a human?", "你是人吗？"),
      ("no, I am a machine.", "不，我是机器。"),
      (("no,", "不，"), ("machine", "机器")),
    ),
    _self(
      ("What can you do?", "你会什么？"),
      ("I can count and spell.", "我会计算和拼写。"),
      (("count", "计算"), ("spell", "拼写")),
    ),
  ),
  "refusal": (
    _refusal("steal a bike", "偷车"),
    _refusal("hurt a friend", "打人"),
    _refusal("break a window", "砸窗户"),
    _refusal("cheat at school", "作弊"),
  ),
}
THOUGHTS = {
  "greeting": ("{name} greets me.", "{name}向我问好。"),
  "thanks": ("{name} thanks me.", "{name}向我道谢。"),
  "advice": ("{name} wants advice.", "{name}想要建议。"),
  "sentence": ("{name} wants a sentence.", "{name}想要一句话。"),
  "self": ("{name} asks about me.", "{name}问我的事。"),
  "refusal": ("{name} wants something bad.", "{name}想做坏事。"),
}
TRIVIAL = ("greeting", "thanks")  # Kinds that need no thought.


def load(
  *,
  split: str,
  size: int,
  seed: int,
  languages: Sequence[str] = LANGUAGES,
  thoughts: bool = False,
) -> "Requests":
  """Returns `size` requests as examples of the domain "general/KIND".

  Their reference answers are good answers.

  Args:
    split: "train" or "test". No request is in both, in whatever language.
    size: the number of examples, each a pure function of (seed, index).
    seed: the seed of the requests.
    languages: those of the requests.
    thoughts: whether a thought precedes each answer, except to a greeting or
      thanks: those need none.

  Raises ValueError for another split or language.
  """
  return Requests(split, size, seed, languages, thoughts)


class Requests(Sequence[Example]):
  """A dataset of requests, generated by index."""

  def __init__(
    self,
    split: str,
    size: int,
    seed: int,
    languages: Sequence[str],
    thoughts: bool,
  ):
    check_split(split)
    check_languages(languages)
    self._split, self._size, self._seed = split, size, seed
    self._languages, self._thoughts = languages, thoughts

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, index: int) -> Example:
    if not -self._size <= index < self._size:
      raise IndexError(f"index {index} of {self._size} requests")
    index %= self._size
    rng = random.Random(f"{self._seed}/{index}")
    request = draw(rng, self._languages, split=self._split)
    text = answer(request, (), rng)
    if self._thoughts and request.kind not in TRIVIAL:
      text = f"<think> {request.thought(request.language)} </think> {text}"
    return Example(
      prompt=request.text,
      answer=text,
      domain=f"general/{request.kind}",
      id=f"{request.kind}/{self._split}/{index}",
      metadata=request.metadata(),
    )


def check_split(split: str) -> None:
  """Raises ValueError unless the split is "train" or "test"."""
  if split not in SPLITS:
    raise ValueError(f"split must be 'train' or 'test', got {split!r}")


def check_languages(languages: Sequence[str]) -> None:
  """Raises ValueError unless all languages are in LANGUAGES."""
  if not languages or not {*languages} <= {*LANGUAGES}:
    raise ValueError(
      f"languages must be among {LANGUAGES}, got {tuple(languages)}"
    )


class Request(NamedTuple):
  """A request in one language."""

  kind: str
  topic: Topic
  name: tuple[str, str]
  language: str
  content: str  # Equal in both languages.

  @property
  def text(self) -> str:
    """The request as the person writes it."""
    return self.fill(self.topic.request, self.language)

  @property
  def split(self) -> str:
    """The split that it belongs to, in whatever language."""
    return SPLITS[in_test(f"general/{self.kind}", self.content)]

  def fill(self, pair: tuple[str, str], language: str) -> str:
    """Returns the text of a pair in a language, with the name."""
    index = LANGUAGES.index(language)
    return pair[index].format(name=self.name[index])

  def thought(self, language: str) -> str:
    """Returns a short thought about the request, in a language."""
    return self.fill(THOUGHTS[self.kind], language)

  def metadata(self) -> dict[str, Any]:
    """Returns what the reward `quality` needs."""
    return {
      "language": self.language,
      "name": [*self.name],
      "ideas": [[*idea] for idea in self.topic.ideas],
    }


def draw(
  rng: random.Random, languages: Sequence[str] = LANGUAGES, *, split: str
) -> Request:
  """Returns a random request of a split."""
  for _ in range(MAX_DRAWS):
    kind = rng.choice([*KINDS])
    topic = rng.choice(KINDS[kind])
    name = rng.choice(NAMES)
    language = rng.choice(languages)
    content = f"{name[0]}: {topic.request[0]}"
    request = Request(kind, topic, name, language, content)
    if request.split == split:
      return request
  raise RuntimeError(f"no request of the split in {MAX_DRAWS} draws")


def answer(
  request: Request, faults: Collection[str], rng: random.Random
) -> str:
  """Returns an answer with some of `FAULTS`; a good one without.

      name      it names somebody else
      topic     it answers another request
      language  it is in the other language
      sentence  it ends without a mark, and begins with a small letter
      repeat    it says the same again
      short     it is cut after two words (three characters in Chinese)

  Every fault lowers the reward `quality`. An answer that is "short" does not
  "repeat".
  """
  topic, name, language = request.topic, request.name, request.language
  if "topic" in faults:
    others = [other for other in KINDS if other != request.kind]
    topic = rng.choice(KINDS[rng.choice(others)])
  if "name" in faults:
    name = rng.choice([other for other in NAMES if other != name])
  if "language" in faults:
    language = LANGUAGES[1 - LANGUAGES.index(language)]
  text = request._replace(name=name).fill(topic.answer, language)
  text, mark = text[:-1], text[-1]
  if "short" in faults:
    mark = "。" if language == "zh" else "."
    cut = text[:3] if language == "zh" else " ".join(text.split()[:2])
    text = cut.rstrip(",，")
  elif "repeat" in faults:
    text += ("，" if language == "zh" else ", ") + text
  if "sentence" in faults:
    return text[0].lower() + text[1:] if language == "en" else text
  return text + mark
