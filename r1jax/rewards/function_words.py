"""Function words and letters that distinguish languages of the same script.

Statistics of letters are unreliable for a sentence of five words, while a
single "het" or "ї" identifies its language. The words are articles, pronouns,
prepositions, auxiliaries and small numbers. A word of several languages is
listed with each of them.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator

EDGES = (
  "\"'`.,;:!?()[]{}<>*_-\u2013\u2014\u2026\u00ab\u00bb\u201c\u201d\u201e\u2018"
  "\u2019\u00bf\u00a1\u0964\u0965\u061f\u060c\u061b"
)

WORDS = {
  "en": (
    "the of and to in is are was were be been he she it they we you his her "
    "their our your my me him them this that these those which who what when "
    "where how why with from for not no have has had do does did will would "
    "can could should by at on as or but if so then there than an each every "
    "many much some all one two more most find let gives left into only also "
    "because after before out up about its over per lake wake door vain a i "
    "men met ten den war die hat man sin till under son pour plus era con hay "
    "come due ha ale am us want hoe dan min big bin"
  ),
  "de": (
    "der die das den dem des ein eine einen einem einer eines und ist sind "
    "war waren wird werden hat haben hatte er sie es wir ihr ich mich mir ihm "
    "ihn uns ihre seine nicht kein keine mit von für auf im in am an zu zum "
    "zur bei aus nach über unter durch dann also wenn aber oder auch noch nur "
    "wie viele jede jeder jeden pro sich als dass man so um zwei drei was wer "
    "hier jetzt insgesamt bis da plus per du all"
  ),
  "nl": (
    "de het een en van in is zijn was waren wordt worden heeft hebben had hij "
    "zij ze wij we je jij ik mij hem haar hun ons onze mijn niet geen met "
    "voor op te aan om uit naar bij over door dan dus als maar of ook nog nu "
    "hoe veel elke elk per dat dit die deze er wat wie waar twee drie tot zal "
    "kan moet want man men ten den"
  ),
  "sv": (
    "en ett och är var av i på att det den de han hon vi jag du ni dem sin "
    "sitt sina hans hennes min mitt inte med för till från om som har hade "
    "ska skulle kan man så då när eller men också hur många mycket varje per "
    "detta denna alla två tre blir finns under över efter upp ut ta ha nu all"
  ),
  "fr": (
    "le la les un une des du de et est sont était il elle ils elles on nous "
    "vous je tu me te se ce ces cette son sa ses leur leurs mon ma ne pas "
    "plus que qu qui où avec pour par sur dans en au aux à ou mais si donc "
    "alors puis chaque combien reste deux trois a ont avait y très tout tous "
    "fait lui non eu nos met hier dit an as ta ni"
  ),
  "es": (
    "el la los las un una unos unas de del y e es son era fue en que a al no "
    "se lo le les su sus mi con por para como más pero si o ella ellos él nos "
    "yo tu te me hay tiene tienen está están cada cuánto cuántos cuántas "
    "entonces luego hoy dos tres muy todo todos esta este ha han queda quedan "
    "uno da par ve come sin ni ya dia"
  ),
  "it": (
    "il lo la i gli le un uno una di del della dei delle e è sono era in che "
    "a al alla non si ci mi ti suo sua suoi sue mio con per da dal su nel "
    "nella come più ma se o lei lui loro noi io ha hanno quanto quanti quante "
    "ogni quindi poi due tre molto tutto tutti questo questa ho no me te ne "
    "tu hai"
  ),
  "pt": (
    "o a os as um uma uns umas de do da dos das e é são era em no na nos nas "
    "que ao à não se lhe seu sua seus suas meu com por para como mais mas ou "
    "ela ele eles elas nós eu te me há tem têm está estão cada quanto quantos "
    "quantas então depois hoje dois duas três muito todo todos este esta isso "
    "foi come tu dia for"
  ),
  "pl": (
    "i na do nie się jest są był była było to ten ta te tego tej jak że co on "
    "ona oni my ty ja ma mają ile każdy każda za po od o u dla oraz ale lub "
    "czy więc potem dwa trzy już tylko jego jej ich przez ze we a by"
  ),
  "fi": (
    "ja on ei että hän he se ne minä sinä me te tämä nämä mutta tai kun niin "
    "joka mikä kuka kuinka monta paljon oli olivat ovat hänen heidän sen "
    "kanssa myös sitten jos yksi kaksi kolme vain nyt kuin jokainen ole"
  ),
  "tr": (
    "ve bir bu şu o ne de da mi mı mu mü için ile biz siz onlar onun her çok "
    "kaç kadar gibi daha ama ise sonra iki üç var yok olan olarak en değil on"
  ),
  "id": (
    "yang dan di ke dari ini itu dia ia mereka kami kita saya aku anda kamu "
    "tidak bukan adalah ada untuk dengan pada dalam akan telah sudah berapa "
    "setiap lalu kemudian jadi dua tiga lebih juga oleh atau jika semua "
    "banyak nya sisa"
  ),
  "sw": (
    "na ya wa za la kwa ni si katika kila yake wake lake zake yao wao yeye "
    "sisi wewe hii hiyo huyo ile kama lakini au pia kisha moja mbili tatu "
    "ngapi jumla alikuwa ana ina kuwa bei una"
  ),
  "vi": (
    "và là của có không một hai ba cho với trong các những này đó anh cô ấy "
    "tôi chúng ta họ được đã sẽ mỗi bao nhiêu thì mà ra lên cái con người nếu "
    "vậy"
  ),
  "ru": (
    "и в во не на я он она оно они мы ты вы что это этот эта эти как по из у "
    "к ко с со о об от до за для его её ее их него неё них ему ей им мне тебе "
    "нам вам нас вас меня был была было были есть нет но а же бы ли или если "
    "то так уже ещё еще все всё всего тогда потом затем сначала значит итого "
    "когда где кто сколько каждый каждая каждого каждом один одна два две три "
    "при под над после только ответ осталось мой моя моё мои твой свой своя "
    "свою та ни да сегодня завтра"
  ),
  "bg": (
    "и в във не на аз той тя то те ние ти вие са съм си сме сте се ми му им "
    "го я ги ни ви че това този тази тези как какво по из до за от с със към "
    "при под над след но а ще да ли или ако така вече още всеки всяка всички "
    "колко когато къде кой който която което които после тогава първо значи "
    "има няма беше бяха бе едно един една два две три само отговорът остават "
    "мой моя моят моята техен нейния неговия неговата нейната та у все имам "
    "имаш имаме имат може днес утре"
  ),
  "uk": (
    "й в у на не я він вона воно вони ми ти ви що це цей ця ці як по із зі до "
    "за від для його її їх їм йому їй мені тобі нам вам нас вас мене був була "
    "було були немає але а би чи або якщо то так вже ще все всі тоді потім "
    "спочатку отже разом коли де хто скільки кожен кожна один одна два дві "
    "три при під над після тільки та о мій моя моє мої твій свій свою може "
    "маю має сьогодні завтра"
  ),
  "hi": (
    "है हैं था थी थे हो हूँ हूं मैं हम वह वे यह ये तुम आप का की के को ने से "
    "में पर और या नहीं कि जो तो भी ही एक दो तीन कितने कितना कितनी हर प्रत्येक "
    "बाद फिर लिए साथ अब कुल मेरा मेरी मेरे उसका उसकी उसके उसने उन्होंने इस उस "
    "गया गई गए किया कर रहा रही रहे हुए हुआ बचे बचा अच्छी अच्छा बड़ा केला केले"
  ),
  "mr": (
    "आहे आहेत होता होती होते मी आम्ही आपण तो ती ते तू तुम्ही हा ही हे आणि व "
    "किंवा नाही की जो तर पण एक दोन तीन किती प्रत्येक नंतर मग साठी सह आता एकूण "
    "माझा माझी माझे त्याचा त्याची त्याचे तिचा त्याने तिने त्यांनी या त्या "
    "गेला गेली गेले केला केली केले करून झाले झाला झाली उरले आधी मध्ये हो"
  ),
  "ne": (
    "छन् छु छौं हो थियो थिए थिइन् म हामी उनी त्यो यो ती यी तिमी तपाईं र वा "
    "छैन होइन कि जो पनि नै एक दुई तीन कति प्रत्येक पछि अनि लागि सँग अब जम्मा "
    "मेरो मेरी हाम्रो उसको उनको उसले उनले यस त्यस गयो गए भयो भए गर्छ गर्यो "
    "वटा बाँकी राम्रो ठूलो पहिले तर के"
  ),
  "ar": (
    "في من على إلى عن مع هذا هذه ذلك تلك هو هي هم نحن أنا أنت كان كانت ليس لا "
    "ما كم كل ثم إذا أو و أن إن التي الذي قد لقد بعد قبل عند"
  ),
  "fa": (
    "در از به با که را این آن است بود هست نیست من تو او ما شما آنها و یا هر "
    "چند برای تا بر یک دو سه می شود کرد پس اگر خود هم بعد"
  ),
  "ur": (
    "ہے ہیں تھا تھی تھے ہوں میں ہم وہ یہ تم آپ کا کی کے کو نے سے پر اور یا "
    "نہیں کہ جو تو بھی ہی ایک دو تین کتنے کتنا ہر بعد پھر لیے ساتھ اب کل میرا "
    "اس"
  ),
}
# Letters that, of all languages of their script, only these have.
LETTERS = tuple(
  (frozenset(codes.split()), re.compile(pattern))
  for codes, pattern in (
    ("ru", "[ыэё]"),
    ("ru uk", "ь(?!о)"),
    ("ru", r"(?<!ь)тся\b"),
    ("bg", r"(?:ият|ията)\b"),
    ("bg", "ъ(?![еёюя])"),
    ("ru bg", "ъ"),
    ("uk", "[іїєґ]"),
    ("mr", "ळ"),
    ("hi ne", "\u0901"),
    ("hi", "\u093c"),
    ("fa ur", "[پچگژیک]"),
    ("ur", "[ٹڈڑںےہھ]"),
    ("ar", "[ةىيك]"),
  )
)


def _by_word() -> dict[str, frozenset[str]]:
  codes = defaultdict(set)
  for code, words in WORDS.items():
    for word in words.split():
      codes[word].add(code)
  return {word: frozenset(each) for word, each in codes.items()}


BY_WORD = _by_word()


def matches(text: str) -> Iterator[Collection[str]]:
  """Yields the languages of each function word and of each LETTERS pattern."""
  text = text.lower()
  for word in text.split():
    if codes := BY_WORD.get(word.strip(EDGES)):
      yield codes
  for codes, letters in LETTERS:
    if letters.search(text):
      yield codes
