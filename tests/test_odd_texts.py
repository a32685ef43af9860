"""Texts as people write them, and as nobody should: every model of text answers, and no answer depends on a neighbour."""
import html
import re
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fb_marketplace.baselines import Pool, TextFeatures, fit_svm, unit_rows
from fb_marketplace.cleaning import join_text, tokens
from fb_marketplace.core import Run
from fb_marketplace.explaining import draw_highlight, highlight_html, linear_contributions, right_to_left, token_contributions
from fb_marketplace.readers import READERS, LinearReader, ListingFeatures, NetworkReader, SentenceReader, fit_line, load_reader, sentence_features
from fb_marketplace.text_networks import NETWORKS, build_text_network, network_log_proba
from fb_marketplace.transformers import TextFunction, build_transformer_classifier, export_hub_encoder, load_hub_encoder, module_word_pieces, save_model, sentence_model, write_random_checkpoint
from fb_marketplace.vocabulary import fit_vocabulary, misspell

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


DESCRIPTIONS = ["four chairs", "", "two wheels, red", "🚲", "with a charger", "", "pine"]
TITLE = st.one_of(TEXT, st.sampled_from([None, np.nan]))
GREEK = st.text("ξψωφ", min_size=1, max_size=12) # letters of which no word, no run and no piece is known
LATIN = st.text("qzkvj", min_size=2, max_size=12) # words that are not known, of letters that are


@pytest.fixture(scope="module", params=READERS)
def reader(request, made):
    """A reader of each kind, loaded from a run; it is small, and knows little."""
    return load_reader(made, request.param, request.param)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, titles, descriptions = tmp_path_factory.mktemp("readers"), pd.Series(KNOWN), pd.Series(DESCRIPTIONS)
    run, vocabulary, features = Run(folder/"run", "05_text"), fit_vocabulary(join_text(titles, descriptions)), ListingFeatures(min_df=1).fit(titles, descriptions)
    LinearReader(features, fit_svm(features.transform(titles, descriptions), CODES, 4)).save(run, "linear")
    encoder = load_hub_encoder(export_hub_encoder(write_random_checkpoint(folder/"checkpoint", [*vocabulary.words, ",", "##s"], hidden=8, blocks=1, heads=2), folder/"module"))
    cut = module_word_pieces(encoder)
    encode = TextFunction(sentence_model(encoder), cut)
    rows = sentence_features(encode, titles, descriptions)
    SentenceReader(encode, fit_line(rows, CODES, 4), (unit_rows(rows), CODES, 40.), Pool([.5, .5], np.zeros(4))).save(run, "sentences")
    save_model(run, "tuned/network", build_transformer_classifier(encoder, 4), cut)
    run.save_array("tuned/scale.npy", np.array(2.))
    NetworkReader(build_text_network("masked_pooling", vocabulary.size, 12, 8, 4), vocabulary, 12, 3.).save(run, "network")
    run.finish()
    return run


def read(reader, titles, descriptions=None):
    """Log-probabilities, after a look at their form."""
    said = reader.log_proba(pd.Series(titles, dtype=object), pd.Series([""]*len(titles) if descriptions is None else descriptions, dtype=object))
    assert said.shape == (len(titles), 4) and said.dtype == np.float32 and np.isfinite(said).all()
    np.testing.assert_allclose(np.exp(said.astype(float)).sum(1), 1, atol=1e-5)
    return said


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(TITLE, TITLE), max_size=6))
@example([(text, "") for text in ODD])
@example([("", text) for text in ODD])
@example([(text, text) for text in LONG])
@example([(None, np.nan), (np.nan, None), (pd.NA, "oak"), ("oak", None)])
@example([])
def test_every_reader_answers_every_text(reader, texts):
    read(reader, [title for title, _ in texts], [description for _, description in texts])


def test_every_reader_answers_misspelt_and_shouted_texts(reader):
    for seed in range(3):
        for spoilt in (misspell(pd.Series(KNOWN), 1, seed), pd.Series(KNOWN).str.upper() + "!!!"): read(reader, spoilt, misspell(pd.Series(DESCRIPTIONS), .5, seed))


def test_nothing_is_nothing_however_it_is_said(reader):
    said = read(reader, ["", None, np.nan, " ", "\x00", "\ud800", "oak", None], ["", np.nan, None, "\n", "\x1f", "\udfff", None, "oak"])
    np.testing.assert_allclose(said[:6], said[:1].repeat(6, 0), atol=1e-5)
    np.testing.assert_allclose(said[6], read(reader, ["oak"])[0], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(TITLE, TITLE), min_size=2, max_size=5), TITLE)
@example([(text, "") for text in ODD], LONG[0])
@example([("oak table", "\n".join(ODD)), *[(text, "four chairs") for text in LONG]], None)
def test_no_answer_of_a_reader_depends_on_a_neighbour(reader, texts, other):
    titles, descriptions = map(list, zip(*texts))
    together = read(reader, titles, descriptions)
    np.testing.assert_allclose(np.vstack([read(reader, [title], [description]) for title, description in texts]), together, atol=1e-5)
    np.testing.assert_allclose(read(reader, titles[::-1], descriptions[::-1]), together[::-1], atol=1e-5)
    np.testing.assert_allclose(read(reader, [other, *titles[1:]], descriptions)[1:], together[1:], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(KNOWN), GREEK, GREEK, st.sampled_from(["{word} {text}", "{text} {word}", "{text}, {word}!", "{word}"]))
def test_one_word_of_unknown_letters_is_as_good_as_another(reader, text, one, two, form):
    first, second = (form.format(text=text, word=word) for word in (one, two))
    np.testing.assert_array_equal(read(reader, [first]), read(reader, [second]))
    np.testing.assert_array_equal(read(reader, [text], [first]), read(reader, [text], [second]))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(KNOWN), LATIN, LATIN)
def test_a_network_does_not_tell_unknown_words_apart(made, text, one, two):
    network = load_reader(made, "network", "network")
    assert one not in network.vocabulary and two not in network.vocabulary
    np.testing.assert_array_equal(read(network, [f"{one} {text}"]), read(network, [f"{two} {text}"]))
    assert (read(network, [f"{one} {text}"]) != read(network, [text])).any() # but it sees that there is one


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(zip(KNOWN, DESCRIPTIONS))), GREEK)
def test_a_word_without_known_pieces_is_nothing_to_the_linear_reader(made, listing, word):
    linear, (title, description) = load_reader(made, "linear", "linear"), listing # between two words, it would part a known pair
    expected = read(linear, [title], [description])
    for changed in ((f"{word} {title}", description), (title, f"{description} {word}"), (f"{word} {word} {title}", f"{description}\n{word}")):
        np.testing.assert_array_equal(read(linear, changed[:1], changed[1:]), expected)


def test_a_network_reads_the_first_words_only(made):
    network = load_reader(made, "network", "network")
    np.testing.assert_array_equal(read(network, ["oak table "*6 + "red bike"]), read(network, ["oak table "*5000]))


@pytest.mark.parametrize("name", NETWORKS)
def test_no_answer_of_a_network_depends_on_a_neighbour(name):
    model, numbers = build_text_network(name, 30, 24, 6, 3, hidden=8), np.random.default_rng(0)
    ids = np.zeros((12, 24), np.int32)
    for row, size in zip(ids, [0, 1, 2, 7, 8, 9, 15, 16, 17, 23, 24, 5]): row[:size] = numbers.integers(1, 30, size)
    together, other = network_log_proba(model, ids, 4), ids.copy()
    other[3] = numbers.integers(1, 30, 24)
    np.testing.assert_allclose(np.vstack([network_log_proba(model, row[None]) for row in ids]), together, atol=1e-5)
    np.testing.assert_allclose(np.delete(network_log_proba(model, other, 4), 3, 0), np.delete(together, 3, 0), atol=1e-5)
