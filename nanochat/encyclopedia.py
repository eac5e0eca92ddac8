"""The encyclopedia that a model may ask: "look up the Moon" -> what the embedded corpus says of it, in a sentence.

In: what the model wrote for a tool. Out: the definition of a subject, or that there is none; None if the call is for
another tool. Like the calculator it runs nothing, and it costs milliseconds once the articles are read.
"""

import functools
import re

from nanochat import dataset

CALL = "look up "  # and the subject as it stands in the question, so that asking is copying
NOTHING = "nothing found"
LONGEST = 140  # characters of a definition; a model of the quickstart's size loses the thread in longer ones

# A full stop after these ends no sentence.
ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Z]|St|Dr|Mr|Mrs|Sgt|Op|No|Jr|Sr|Mt|Ft|vs|lit|c|ca|fl|r|Rev|Gen|Col|Lt|etc|subg|var|sp)|\b[A-Za-z]\.[A-Za-z])$"
)
SENTENCE_END = re.compile(r"[.!?][\"”]?(?= [A-Z0-9\"“]|$)")
# Where a long sentence may stop and still be one.
CLAUSE = re.compile(
    r",? (?:that|which|who|whose|where|because|when|while|although|including|such as|as well as|especially|typically)\b"
    r"|, (?:and |or |but )?(?:often|usually|located|known|with|used|made|based|consisting|found|born|best|most)\b|;"
)
DANGLING = re.compile(
    r"(?: (?:of|by|in|for) \w+ing|,| (?:of|in|to|by|and|or|the|an?|ways?)|\b(?:who|which|that),? \w+ \w+)$"
)
VERB = re.compile(r" (?:is|are|was|were|refers?|gives?|means?|includes?|consists?|describes?|had|has|have) ")
UGLY = re.compile(r"[()\[\]{}]| [,;.]|\b(\w+) \1\b")  # brackets that may not close, gaps where a formula was


def look_up(call: str) -> str | None:
    """What the encyclopedia says to "look up SUBJECT": a sentence, or NOTHING. None if this is no such call."""
    if not call.startswith(CALL):
        return None
    index, subject = titles(), key_of(call.removeprefix(CALL))
    article = index.get(subject) or index.get(subject.removesuffix("s")) or surnames().get(subject) or search(subject)
    return definition(article) if article else NOTHING


def search(subject: str) -> dict | None:
    """ "the capital of France" -> the first article whose definition has it, perhaps with words before "of"."""
    words = [re.escape(word.removesuffix("s")) + "s?" for word in subject.split()]
    if len({*words} - {"ofs?", "thes?"}) < 2:
        return None
    phrase = " ".join(words).replace(" ofs?", r"\b.{,40}? of(?: the)?")
    phrase = re.compile(rf"(?<![\w-]){phrase}(?![\w-])")
    return next((article for text, article in definitions() if phrase.search(text)), None)


def key_of(subject: str) -> str:
    """A subject as people may write it: without article, capitals, brackets and marks around it."""
    plain = re.sub(r" \(.*\)$", "", " ".join(subject.casefold().split()).strip(" .?!\"'“”"))
    return re.sub(r"^(?:the|an?) (?=\S)", "", plain)


@functools.cache
def titles() -> dict[str, dict]:
    """Key of a title, and of the name that the first sentence has for it -> article. Empty without the corpus."""
    try:
        articles = dataset.wiki_articles()
    except SystemExit:  # a model also answers where the corpus is not installed: then it finds nothing
        return {}
    index = {key_of(article["title"]): article for article in reversed(articles)}
    for article in articles:
        index.setdefault(key_of(re.split(r",| \(|(?<!^)" + VERB.pattern, article["extract"], maxsplit=1)[0]), article)
    return index


def by_rank() -> list[dict]:
    """The thousand most vital articles first, which the corpus has no topic for; among equals the longer one."""
    articles = {article["title"]: article for article in titles().values()}  # many have two keys there
    return sorted(articles.values(), key=lambda a: (a["topic"] != "Uncategorized", -len(a["extract"])))


@functools.cache
def surnames() -> dict[str, dict]:
    """ "einstein" -> the first article on a person of this name, or of the most vital ones whose title ends so."""
    found = [article for article in by_rank() if article["topic"] in ("People", "Uncategorized")]
    return {key_of(article["title"]).split()[-1]: article for article in reversed(found)}


@functools.cache
def definitions() -> list[tuple[str, dict]]:
    """Each definition as `search` reads it, and its article."""
    return [(definition(article).casefold(), article) for article in by_rank()]


def definition(article: dict) -> str:
    """The first sentence of an article, cut after a clause if it is long; where that makes no sentence, the title and
    the few words that describe it."""
    sentence = shorten(first_sentence(article["extract"]))
    if sentence and SENTENCE_END.search(sentence[-2:]) and VERB.search(sentence) and not UGLY.search(sentence):
        return sentence
    return f"{article['title']}: {(article['description'] or article['topic']).rstrip('.')}."


def first_sentence(text: str) -> str:
    """The first sentence of a text, its white space made plain."""
    text = " ".join(text.split())
    for end in SENTENCE_END.finditer(text):
        if not ABBREVIATION.search(text, 0, end.start()):
            return text[: end.end()]
    return text


def shorten(sentence: str) -> str | None:
    """The sentence itself if it is short, else up to its last clause that fits; None if there is no such place."""
    if len(sentence) <= LONGEST:
        return sentence
    for cut in reversed([match.start() for match in CLAUSE.finditer(sentence, 0, LONGEST)]):
        if not DANGLING.search(sentence, 0, cut):
            return sentence[:cut] + "."
    return None
