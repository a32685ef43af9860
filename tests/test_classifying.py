"""One question, classify(listings), asked in every way."""
from dataclasses import replace

import numpy as np
import pytest

from fb_marketplace.classifying import Asked, Predictor
from fb_marketplace.core import InputError, Run
from fb_marketplace import data # gives a run its listings and photos


@pytest.fixture(scope="module")
def predictor(demo): return Predictor(Run(demo, "10_app"))


@pytest.fixture(scope="module")
def whole(demo):
    run = Run(demo, "10_app")
    listings, store, owned = run.listings(), run.photo_store(), run.photos().groupby("product_id")["id"].agg(list)
    return [Asked(row.product_name, row.product_description, [store.open(name) for name in owned[row.id]], row.price) for row in listings[listings.image_num > 0].itertuples()]


def text_of(asked): return replace(asked, photos=())
def photos_of(asked): return Asked(photos=asked.photos)
def confidence(answers): return np.mean([np.exp(answer.log_proba.max()) for answer in answers])


def test_every_mix_of_senses_is_answered_in_one_batch(predictor, whole, tmp_path):
    cut = tmp_path/"cut.jpg"
    cut.write_bytes(b"\xff\xd8\xff\xe0 not much of a photo")
    mixed = [whole[0], text_of(whole[0]), photos_of(whole[0]), Asked(), Asked(" \n", None), replace(whole[0], photos=[cut, *whole[0].photos]), replace(whole[0], photos=[cut, b"", "no/such.png"]), Asked(photos=[cut])]
    answers = predictor.classify(mixed)
    assert [answer.senses for answer in answers] == ["text + photo", "text", "photo", "", "", "text + photo", "text", ""]
    for answer in answers:
        assert np.isfinite(answer.log_proba).all() == bool(answer.senses) == np.isfinite(answer.price)
        if answer.senses: assert np.isclose(np.exp(answer.log_proba).sum(), 1) and answer.candidates[answer.log_proba.argmax()] and answer.price_low <= answer.price <= answer.price_high
        else: assert "neither text nor a photo" in answer.notes[0] and answer.text_embedding is answer.photo_embedding is None
    assert len(answers[5].notes) == 1 and "photo 1 is left out" in answers[5].notes[0]
    np.testing.assert_allclose(answers[5].log_proba, answers[0].log_proba, atol=1e-4) # what cannot be read changes nothing
    assert len(answers[6].notes) == 3 and np.allclose(answers[6].log_proba, answers[1].log_proba, atol=1e-4)
    assert (answers[1].photo_embedding is None, answers[2].text_embedding is None) == (True, True)


def test_alone_and_among_a_thousand_the_answer_is_the_same(predictor, whole):
    asked = [[whole[row % len(whole)], text_of(whole[row % len(whole)]), photos_of(whole[row % len(whole)])][row % 3] for row in range(60)]
    features = [predictor.photo.features(listing.photos) for listing in asked]
    asked = [replace(listing, features=rows, photos=()) for listing, rows in zip(asked, features)]
    many = predictor.classify([asked[row % 60] for row in range(1000)])
    for row in range(0, 60, 7):
        alone = predictor.classify([asked[row]])[0]
        for place in (row, row + 900):
            np.testing.assert_allclose(alone.log_proba, many[place].log_proba, atol=1e-4)
            assert (alone.senses, alone.sure, alone.candidates.tolist()) == (many[place].senses, many[place].sure, many[place].candidates.tolist())
            assert np.isclose(alone.price, many[place].price, rtol=1e-3)


def test_photos_give_the_same_answer_fresh_and_with_features_that_were_kept(predictor, whole):
    fresh, kept = predictor.classify(whole[:5]), predictor.classify([replace(asked, features=predictor.photo.features(asked.photos)) for asked in whole[:5]])
    for left, right in zip(fresh, kept): np.testing.assert_allclose(left.log_proba, right.log_proba, atol=1e-4)


def test_confidence_does_not_rise_when_a_sense_is_taken_away(predictor, whole):
    both = confidence(predictor.classify(whole))
    assert both > confidence(predictor.classify([text_of(asked) for asked in whole]))
    assert both > confidence(predictor.classify([photos_of(asked) for asked in whole]))


def test_nothing_asked_is_nothing_answered(predictor):
    assert predictor.classify([]) == []
    with pytest.raises(InputError, match="neither text nor a photo"): predictor.predict()
