"""Search in a joint space: one sense alone or both, saved and loaded, with and without the guessed category, and refused when it is damaged."""
import os
import subprocess
import sys

import faiss
import numpy as np
import pandas as pd
import pytest

from fb_marketplace.core import ArtefactError, InputError, Run
from fb_marketplace.embeddings import run_encoder
from fb_marketplace.index import ListingIndex, build_index, search_vectors
from fb_marketplace.joint_embedding import JointEmbedding, Tower, fit_cca, make_shop

COUNT, SHELVES = 400, 5


@pytest.fixture(scope="module")
def market():
    """Text, photos, owners, log-probabilities of categories and the towers of a small market whose photos hide nothing; listing n is titled n."""
    text, photo, owners, groups = make_shop(COUNT, unsigned=0)
    sure = np.full((COUNT, SHELVES), .02)
    sure[np.arange(COUNT), groups % SHELVES] = .92
    return text, photo, owners, np.log(sure), fit_cca(text, photo, owners, np.arange(300), 16, ridge=.1)


def open_shop(market, weight=0.):
    text, photo, owners, log_proba, joint = market
    shown = pd.DataFrame(dict(id=[f"id {row}" for row in range(COUNT)], title=[str(row) for row in range(COUNT)]))
    return ListingIndex(build_index(search_vectors(joint.listing(text, photo, owners), log_proba, weight)), shown, joint, weight)


def asked(market, row, log_proba=None):
    """The three kinds of query of a listing."""
    text, photo, owners, *_ = market
    own = photo[owners == row]
    return {"text": (text[row], None, log_proba), "photo": (None, own, log_proba), "both": (text[row], own, log_proba)}


@pytest.mark.parametrize("weight", [0., .2])
@pytest.mark.parametrize("kind, least", [("text", .85), ("photo", .85), ("both", 1.)])
def test_a_listing_is_found_by_what_it_has(market, weight, kind, least):
    index, guess = open_shop(market, weight), market[3]
    places = [index.search(*asked(market, row, guess[row])[kind], k=5).title.tolist() for row in range(300, 380)]
    assert np.mean([str(row) in found for row, found in zip(range(300, 380), places)]) >= least
    if kind == "both": assert index.search(*asked(market, 300, guess[300])[kind], k=1).score[0] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("weight", [0., .3])
def test_saved_and_loaded_it_answers_the_same(market, tmp_path, weight):
    index, run = open_shop(market, weight), Run(tmp_path, "07_index")
    index.save(run)
    run.finish()
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pkl", ".pickle", ".joblib", ".keras")]
    loaded = ListingIndex.load(run)
    for query in asked(market, 7, market[3][7]).values(): pd.testing.assert_frame_equal(loaded.search(*query), index.search(*query))


def test_it_is_loaded_without_a_network_framework(market, tmp_path):
    run = Run(tmp_path, "07_index")
    open_shop(market).save(run)
    run.finish()
    program = f"import sys; from fb_marketplace.core import Run; from fb_marketplace.index import ListingIndex; ListingIndex.load(Run({str(tmp_path)!r}, 'x')); print(*{{'tensorflow', 'keras'}} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ).stdout.strip() == ""


def test_without_a_weight_the_guess_changes_nothing(market):
    index = open_shop(market)
    text, other = market[0][7], market[3][8]
    assert index.index.d == index.joint.size and index.categories == 0
    pd.testing.assert_frame_equal(index.search(text, None, other), index.search(text, None, None))


def test_with_a_weight_the_guess_counts(market):
    index, text, guess = open_shop(market, .3), market[0][7], market[3]
    shelf = guess.argmax(1)
    def on_shelf(row): return (shelf[index.search(text, None, guess[row], 20).title.astype(int)] == shelf[row]).mean()
    def unasked(row): return (shelf[index.search(text, None, None, 20).title.astype(int)] == shelf[row]).mean()
    gains = [on_shelf(row) - unasked(row) for row in range(5)]
    assert min(gains) > 0 and np.mean(gains) > .2
    assert index.search(text, None, None).score.max() < index.search(text, None, guess[7]).score.max()


def test_one_photo_may_come_as_a_row(market):
    index, one = open_shop(market), market[1][0]
    pd.testing.assert_frame_equal(index.search(None, one, None), index.search(None, one[None], None))


def test_a_text_of_which_nothing_is_known_is_no_text(market):
    index, (text, photo, *_) = open_shop(market), market
    pd.testing.assert_frame_equal(index.search(0*text[0], photo[0], None), index.search(None, photo[0], None))
    nothing = index.search(0*text[0], None, None, 3)
    assert len(nothing) == 3 and (nothing.score == 0).all()


def test_more_results_than_listings_are_not_invented(market):
    assert len(open_shop(market).search(market[0][0], None, None, 1000)) == COUNT


def test_features_of_another_width_are_refused(market):
    index = open_shop(market)
    with pytest.raises(InputError, match="rows of 24 features"): index.search(np.ones(5), None, None)
    with pytest.raises(InputError, match="rows of 40 features"): index.search(None, np.ones((2, 5)), None)


@pytest.mark.parametrize("damage", [
    lambda folder: os.truncate(folder/"index"/"listings.faiss", 100),
    lambda folder: (folder/"index"/"listings.faiss").unlink(),
    lambda folder: (folder/"index"/"settings.json").write_text('{"category_weight": 0.3}'),
    lambda folder: (folder/"models"/"joint"/"text_0_kernel.npy").unlink(),
    lambda folder: open(folder/"models"/"joint"/"photo_0_bias.npy", "ab").write(b"!"),
    lambda folder: (folder/"manifests"/"07_index.json").unlink()])
def test_a_damaged_index_is_refused(market, tmp_path, damage):
    run = Run(tmp_path, "07_index")
    open_shop(market).save(run)
    run.finish()
    damage(tmp_path)
    with pytest.raises(ArtefactError, match="run the step"): ListingIndex.load(run)


def test_parts_that_do_not_fit_each_other_are_refused(market):
    index = open_shop(market)
    narrow = JointEmbedding(*[Tower([(np.ones((2, 3)), np.zeros(3))])]*2)
    wide = JointEmbedding(*[Tower([(np.ones((2, 30)), np.zeros(30))])]*2)
    for shown, joint, weight, said in ((index.shown[1:], index.joint, 0., "400 vectors for 399"), (index.shown, narrow, 0., "numbers"), (index.shown, wide, 0., "numbers"), (index.shown, index.joint, .1, "numbers")):
        with pytest.raises(ArtefactError, match=said): ListingIndex(index.index, shown, joint, weight)


def test_vectors_of_whole_listings_have_length_one(market):
    text, photo, owners, log_proba, joint = market
    for weight in (0., .1, 1.):
        assert np.linalg.norm(search_vectors(joint.listing(text, photo, owners), log_proba, weight), axis=1) == pytest.approx(1, abs=1e-5)
    assert search_vectors(np.full((1, 16), np.nan), log_proba[:1]).tolist() == [[0.]*16]
    assert faiss.downcast_index(open_shop(market).index).metric_type == faiss.METRIC_INNER_PRODUCT


def test_an_encoder_is_named_by_both_of_its_halves(market, tmp_path):
    images, index = Run(tmp_path, "04_image"), Run(tmp_path, "07_index")
    with pytest.raises(ArtefactError, match="no photo model; run the step 04_image"): run_encoder(tmp_path)
    images.save_json("models/image/encoders.json", {})
    images.finish()
    with pytest.raises(ArtefactError, match="no joint embedding; run the step 07_index"): run_encoder(tmp_path)
    open_shop(market).save(index)
    index.finish()
    before = run_encoder(tmp_path)
    JointEmbedding(market[4].text, Tower([(2*kernel, bias) for kernel, bias in market[4].photo.layers])).save(index, "models/joint")
    index.finish()
    assert run_encoder(tmp_path)["sha256"] != before["sha256"]
