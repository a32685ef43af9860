"""Texts as people write them, and as nobody should: every model of text answers, and no answer depends on a neighbour."""
import html
import re
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fb_marketplace.baselines import TextFeatures, fit_svm
from fb_marketplace.cleaning import tokens
from fb_marketplace.explaining import draw_highlight, highlight_html, linear_contributions, right_to_left, token_contributions

ODD = ["", " ", "\n\n", "tabel and chiars, gr8 condishun", "OAK TABLE!!! LIKE NEW!!! COLLECT TODAY!!!", "👍🏽 👨‍👩‍👧 🚲🚲🚲", "💡", "שולחן עץ אלון, מצב מצוין", "طاولة خشب بلوط ﷺ", "\u202eelbat kao\u202c", "سرير oak bed",
       "ﬁne ﬀ STRAßE İstanbul ΟΔΟΣ", "a´b ¨ ½price", "e" + "\u0301"*500, "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞", "\x00\x1f\x85", "\ud800 oak \udfff", "$x^2$ \\frac{ $5 and $10", "<script>alert('oak')</script> \"table\"", "桌子，橡木", "oak"*3, "NULL nan None", "%s%n {0}"]
LONG = ["oak table "*5000, "x"*50_000, "🚲"*50_000, "שולחן "*8334, " "*50_000, "é\u0301"*25_000]
TEXT = st.one_of(st.text(st.characters(), max_size=60), st.sampled_from(ODD), st.lists(st.sampled_from(["oak", "TABLE", "bikee", "phone,", "👍", "שולחן", "\n", "ﬁne", "red/blue"]), max_size=12).map(" ".join))
KNOWN = ["oak table and chairs", "pine table, fine", "red bike with lights", "folding bike 🚲", "phone with charger", "phone, 64GB", "שולחן oak"]
CODES = np.array([0, 0, 1, 1, 2, 2, 0])


@pytest.fixture(scope="module")
def fitted():
    features = TextFeatures(min_df=1).fit(pd.Series(KNOWN))
    return features, fit_svm(features.transform(KNOWN), CODES, 4) # the fourth category was never seen


def log_proba(fitted, texts):
    return fitted[1].log_proba(fitted[0].transform(texts))


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=6))
@example(ODD)
@example(LONG)
def test_every_text_gets_probabilities(fitted, texts):
    said = log_proba(fitted, texts)
    assert said.shape == (len(texts), 4) and np.isfinite(said).all()
    np.testing.assert_allclose(np.exp(said.astype(float)).sum(1), 1, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=2, max_size=6), st.randoms(use_true_random=False))
@example(ODD + LONG, None)
def test_an_answer_depends_on_no_neighbour(fitted, texts, random):
    order = list(range(len(texts)))[::-1]
    if random: random.shuffle(order)
    together = log_proba(fitted, texts)
    np.testing.assert_allclose(log_proba(fitted, [texts[row] for row in order]), together[order], atol=1e-6)
    np.testing.assert_allclose(np.vstack([log_proba(fitted, [text]) for text in texts]), together, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KNOWN), st.text("qzkvj", min_size=2, max_size=20), st.sampled_from(["before", "behind"]))
def test_a_word_nobody_has_seen_says_nothing_to_a_model_of_words(text, word, where):
    features = TextFeatures(("words",), min_df=1).fit(pd.Series(KNOWN))
    changed = f"{word} {text}" if where == "before" else f"{text} {word}"
    assert word not in features.vectorizers["words"].vocabulary_
    assert (features.transform([changed]) != features.transform([text])).nnz == 0


def test_capitals_and_accents_say_nothing(fitted):
    for changed in (KNOWN[1].upper(), KNOWN[1].replace("fine", "ﬁne"), KNOWN[1].replace("i", "í"), f"  {KNOWN[1]}\n"):
        np.testing.assert_allclose(log_proba(fitted, [changed]), log_proba(fitted, [KNOWN[1]]), atol=1e-6)


def test_misspelt_words_are_still_understood(fitted):
    assert log_proba(fitted, ["oka tabel and chiars", "foldin bikee", "fone chargr"]).argmax(1).tolist() == [0, 1, 2]


@settings(max_examples=100, deadline=None)
@given(TEXT, st.integers(0, 3), st.sampled_from([None, "others", 0]))
def test_words_hold_the_whole_score(fitted, text, code, against):
    check_contributions(fitted, text, code, against)


@pytest.mark.parametrize("text", ODD + LONG, ids=lambda text: f"{ascii(text[:12])}-{len(text)}")
def test_words_of_odd_texts_hold_the_whole_score(fitted, text):
    began = time.perf_counter()
    for code in range(4): check_contributions(fitted, text, code, "others")
    assert time.perf_counter() - began < 20


def check_contributions(fitted, text, code, against):
    features, model = fitted
    said = linear_contributions(features, model, text, code, against)
    lead = (model.scores(features.transform([text]))[0] - model.intercept).astype(float)
    rest = 0 if against is None else lead[against] if against != "others" else np.delete(lead, code).mean()
    np.testing.assert_allclose(said.contribution.sum(), lead[code] - rest, atol=1e-5)
    assert (said.start >= 0).all() and [text[start:end] for start, end in zip(said.start, said.end)] == said.word.tolist() == text.split()


@settings(max_examples=100, deadline=None)
@given(TEXT)
@example("\n".join(ODD))
@example("red_bike [phone] it's 1,000.50 half-price")
def test_tokens_of_a_text_are_those_of_its_words(text):
    assert [token for word in text.split() for token in tokens(word)] == tokens(text)
    count = len(tokens(text))
    said = token_contributions(text, np.arange(1., count + 3))
    assert said.contribution.sum() == (count + 2)*(count + 3)/2 and said.start.tolist()[-1] == -1


@settings(max_examples=60, deadline=None)
@given(TEXT, TEXT)
@example("<script>alert('oak')</script> \"table\"", "\"><img src=x onerror=alert(1)>")
@example("oak table "*5000, "")
def test_a_coloured_text_is_the_text_and_nothing_else(fitted, text, title):
    page = highlight_html(text, linear_contributions(*fitted, text, 0), title)
    page.encode()
    assert set(re.findall(r"<\s*(\w+)", page)) <= {"div", "span"} and page.count("<div") == page.count("</div") and page.count("<span") == page.count("</span")
    inner = re.search(r"plaintext\">(.*?)</div>", page, re.S)[1]
    assert html.unescape(re.sub(r"<[^>]*>", "", inner)) == html.unescape(html.escape(text.encode("utf-8", "replace").decode()))


@pytest.mark.filterwarnings("error")
def test_every_text_can_be_drawn(fitted):
    texts = ODD + LONG
    figure = draw_highlight(texts, [linear_contributions(*fitted, text, 0) for text in texts], ["furniture"]*len(texts), ["$b$"]*len(texts))
    figure.canvas.draw()
    assert figure.get_figheight() < 120


def test_the_direction_of_a_text_is_that_of_its_first_letter():
    assert [right_to_left(text) for text in ("", "💡", "12", "oak שולחן", "שולחן oak", "طاولة")] == [False, False, False, False, True, True]
