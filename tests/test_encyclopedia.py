"""The encyclopedia: what is found, by which names, and what is said of it."""

import pytest
from corpus import require_corpus

from nanochat import dataset, encyclopedia
from nanochat.encyclopedia import NOTHING, definition, first_sentence, look_up, shorten

require_corpus()


def article(title: str, extract: str, description: str = "", topic: str = "Arts") -> dict:
    return {"title": title, "extract": extract, "description": description, "topic": topic}


def forget():
    for made in (encyclopedia.titles, encyclopedia.surnames, encyclopedia.definitions):
        made.cache_clear()


@pytest.fixture
def shelf(monkeypatch):
    """Puts articles in the place of the corpus."""

    def fill(*articles):
        monkeypatch.setattr(dataset, "wiki_articles", lambda: list(articles))
        forget()

    yield fill
    monkeypatch.undo()
    forget()


def test_sentences_end_where_they_end():
    assert first_sentence("St. Paul is a city. It is old.") == "St. Paul is a city."
    assert first_sentence("A poem by T. S. Eliot\nis long. Yes.") == "A poem by T. S. Eliot is long."
    assert first_sentence("No stop") == "No stop"


def test_a_long_sentence_is_cut_after_a_clause():
    long = "A kite is a thing with wings and a long tail, " + "which " + "flies high and " * 10 + "lands."
    assert shorten(long) == "A kite is a thing with wings and a long tail."
    assert shorten("word " * 50) is None
    zoologist = (
        "Ada was a zoologist and a professor of entomology who, in 1947, " + "wrote reports about " * 8 + "bees."
    )
    assert shorten(zoologist) is None or not shorten(zoologist).endswith("1947.")


def test_what_makes_no_sentence_is_described():
    assert definition(article("Kite", "A kite is a toy. It flies.")) == "A kite is a toy."
    assert definition(article("Euler", "Euler's number, , is a constant.", "A number")) == "Euler: A number."
    assert definition(article("Kite", "word " * 50, "")) == "Kite: Arts."
    assert definition(article("Kite", "Kites are such as", "Toys in the U.S.")) == "Kite: Toys in the U.S."
    assert definition(article("Coli", "Coli ( KOH-lye) is a bacterium.", "Bacterium")) == "Coli: Bacterium."


def test_a_subject_is_found_as_people_write_it(shelf):
    shelf(
        article("Lighthouse", "A lighthouse is a tower."),
        article("Set (music)", "A set is a list of songs."),
        article("Set (mathematics)", "In mathematics, a set is a collection."),
        article("Rose", "Roses are flowers."),
        article("The Hague", "The Hague is a city."),
    )
    for name in ("a lighthouse", "Lighthouse", "the LIGHTHOUSE?", ' "lighthouse" ', "lighthouses"):
        assert look_up(f"look up {name}") == "A lighthouse is a tower.", name
    assert look_up("look up a set") == "A set is a list of songs.", "the first of a name"
    assert look_up("look up a rose") == look_up("look up roses") == "Roses are flowers."
    assert look_up("look up The Hague") == look_up("look up Hague") == "The Hague is a city."
    for name in ("light", "house", "", "the", "lighthouse keeper", "x" * 10_000):
        assert look_up(f"look up {name}") == NOTHING, name


def test_people_are_found_by_their_last_name(shelf):
    shelf(
        article("Anna Bach", "Anna Bach was a singer. " + "She sang. " * 9, topic="People"),
        article("Johann Bach", "Johann Bach was a composer.", topic="Uncategorized"),
        article("Otto Hahn", "Otto Hahn was a chemist.", topic="People"),
        article("Kurt Hahn", "Kurt Hahn was an educator. He founded schools.", topic="People"),
        article("Bicycle", "A bicycle is a vehicle.", topic="Technology"),
    )
    assert look_up("look up bach") == "Johann Bach was a composer.", "the more vital one"
    assert look_up("look up Hahn") == "Kurt Hahn was an educator.", "the longer article"
    assert look_up("look up bicycle") == "A bicycle is a vehicle."
    assert look_up("look up Anna Bach") == "Anna Bach was a singer."


def test_what_has_no_title_is_found_by_its_definition(shelf):
    shelf(
        article("Perth", "Perth is the capital city of Western Australia.", topic="Geography"),
        article("Ghent", "Ghent is the second-largest city in Belgium.", topic="Geography"),
        article("Old Paris", "Old Paris was the capital of France.", topic="Geography"),
        article("Paris", "Paris is the capital and largest city of France.", topic="Uncategorized"),
    )
    for name in ("the capital of France", "capitals of france"):
        assert look_up(f"look up {name}") == "Paris is the capital and largest city of France.", name
    for name in (
        "the capital of Australia",
        "largest city in Belgium",
        "capital",
        "of the",
        "of of",
        "city .* .*",
        "(a b",
    ):
        assert look_up(f"look up {name}") == NOTHING, name


def test_a_call_for_another_tool_is_not_its_own():
    for call in ("12*34", "look", "lookup('the Moon')", "Look up the Moon", " look up the Moon", ""):
        assert look_up(call) is None, call


def test_without_the_corpus_nothing_is_found(shelf, monkeypatch):
    shelf()

    def missing():
        raise SystemExit("not installed")

    monkeypatch.setattr(dataset, "wiki_articles", missing)
    assert look_up("look up the Moon") == NOTHING


def test_every_article_is_found_by_its_title():
    """But for a few whose title without its brackets is that of another one."""
    articles = dataset.wiki_articles()
    found = [look_up(f"look up {a['title']}") == definition(a) for a in articles]
    assert sum(found) > 0.99 * len(articles)
    texts = [definition(a) for a in articles]
    assert all(text.rstrip('"').endswith((".", "!")) and not text.endswith("..") for text in texts)
    assert max(map(len, texts)) <= 140
    assert look_up("look up the Moon") == "The Moon is the only natural satellite of Earth."
    assert look_up("look up einstein").startswith("Albert Einstein was a German-born theoretical physicist")
