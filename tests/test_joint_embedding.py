"""A joint embedding goes on after a real kill, leaves near copies alone, and says what is wrong with its input."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fb_marketplace.core import ArtefactError, InputError, Run


def make_shop(count=160, copies=1, seed=0):
    """Listings whose words and photos show the same four coordinates; each stands there `copies` times, with noise of its own."""
    mixing, random = np.random.default_rng(99), np.random.default_rng(seed)
    see_text, see_photo = mixing.normal(size=(4, 12)), mixing.normal(size=(4, 16))
    groups = np.arange(count)//copies
    point, owners = random.normal(size=(count, 4))[groups], np.repeat(np.arange(count), 2)
    text, photo = point @ see_text, point[owners] @ see_photo
    return text + .1*random.normal(size=text.shape), photo + .1*random.normal(size=photo.shape), owners, groups


def train(folder, shop=None, **options):
    from fb_marketplace.contrastive import fit_joint
    shop = shop or make_shop()
    count = len(shop[0])
    options = dict(size=8, epochs=4, rate=1e-2, batch=40, input_dropout=.1, hidden=16, folder=folder) | options
    return fit_joint(*shop, np.arange(count*3//4), np.arange(count*3//4, count), **options)


def die_after_the_second_epoch(epoch, figures):
    if epoch == 2: os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_training_ends_at_the_same_towers(tmp_path):
    done = subprocess.run([sys.executable, __file__, str(tmp_path/"killed")], env=os.environ | dict(PYTHONPATH=str(Path(__file__).parent.parent)), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list((tmp_path/"killed").glob("epoch-*"))) >= 1
    seen = []
    resumed, whole = train(tmp_path/"killed", after_epoch=lambda epoch, figures: seen.append(epoch)), train(tmp_path/"whole")
    assert seen == [3, 4]
    assert resumed.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
    for one, other in zip(resumed.text.layers + resumed.photo.layers, whole.text.layers + whole.photo.layers):
        assert all((first == second).all() for first, second in zip(one, other))


@pytest.mark.parametrize("mask, near", [(True, True), (False, False)])
def test_near_copies_are_no_wrong_answers(mask, near):
    """Copies of a listing do not add to the loss, and are not pushed away; without the mask they would be."""
    import keras
    from fb_marketplace.contrastive import InfoNCE, Matching
    vectors, group = np.eye(4, dtype=np.float32)[[0, 1, 2, 2]], np.array([0, 1, 2, 2], np.int32)
    weights = np.array([[.5, .5, 0, 0]]*4, np.float32)
    matching, loss = Matching(temperature=.05, mask=mask), InfoNCE()
    with_copies = float(loss(weights, matching([vectors]*3 + [group])))
    without = float(loss(weights[:3], matching([vectors[:3]]*3 + [group[:3]])))
    assert (with_copies < 1e-6) == near and without < 1e-6
    answers = keras.ops.convert_to_numpy(matching([vectors]*3 + [group]))
    assert (answers[2, :, 3] < -1e8).all() == (answers[3, :, 2] < -1e8).all() == near
    assert (answers[2, :, 2] > 19).all()


def test_batches_are_fetched_by_their_number():
    """TensorFlow gets what the batches hold, in their order, every time that it asks, and the same again under the same seed."""
    from fb_marketplace.contrastive import PairBatches
    text, photo, owners, groups = make_shop(50)
    photos_of = {row: np.flatnonzero(owners == row)[:1 + row % 2] for row in range(50)}
    one, same, other = [PairBatches((text, photo), photos_of, groups, 8, .5, seed) for seed in ((0, 1), (0, 1), (0, 2))]
    data = one.dataset()
    for _ in range(2):
        fetched = [(*[part.numpy() for part in given.values()], weights.numpy()) for given, weights in data]
        assert len(fetched) == len(one) == 6
        for found, number in zip(fetched, range(6)):
            given, weights = same[number]
            assert all((part == want).all() for part, want in zip(found, (*given.values(), weights), strict=True))
    assert not np.array_equal(np.concatenate(one.batches), np.concatenate(other.batches))
    assert data.element_spec[0]["text"].shape.as_list() == [None, 12] and data.element_spec[1].shape.as_list() == [None, 4]


def test_the_mask_reaches_the_training(tmp_path):
    """With three copies of each listing, answers that cannot be told apart keep the loss above ln 2 unless they are masked."""
    shop = make_shop(240, copies=3)
    masked, plain = [train(tmp_path/str(mask), shop, mask=mask, batch=180, epochs=12).history.val_loss.min() for mask in (True, False)]
    assert masked + np.log(2)/2 < plain


@pytest.mark.parametrize("damage, message", [
    (dict(owners=lambda owners: owners[:-1]), "owners; each photo needs one"),
    (dict(owners=lambda owners: owners + 1), "the listings are 0 to 159"),
    (dict(owners=lambda owners: 0*owners - 1), "0 of 120 listings have both"),
    (dict(text=lambda text: text*np.nan), "0 of 120 listings have both"),
    (dict(photo=lambda photo: photo*0), "0 of 120 listings have both")])
def test_what_cannot_be_learned_from_is_named(tmp_path, damage, message):
    shop = dict(zip(("text", "photo", "owners", "groups"), make_shop()))
    shop |= {name: change(shop[name]) for name, change in damage.items()}
    with pytest.raises(InputError, match=message): train(tmp_path, tuple(shop.values()))


def test_other_data_in_the_folder_are_refused(tmp_path):
    train(tmp_path, epochs=1)
    for more in (dict(shop=make_shop(seed=1)), dict(size=7), dict(temperature=.1), dict(photo_weight=.5), dict(mask=False)):
        with pytest.raises(InputError, match="other settings"): train(tmp_path, **dict(epochs=1) | more)
    assert len(train(tmp_path, epochs=1, size=7, anew=True).history) == 1


def test_a_size_that_no_closed_form_has_is_refused(tmp_path):
    with pytest.raises(InputError, match="from 1 to 12"): train(tmp_path, hidden=0, size=13)
    assert train(tmp_path, hidden=0, size=13, ridge=None, epochs=1).size == 13


def test_listings_without_text_or_photos_teach_nothing_and_break_nothing(tmp_path):
    text, photo, owners, groups = make_shop()
    text[::3], photo[5], owners[20:24] = 0, np.nan, -1
    found = train(tmp_path, (text, photo, owners, groups), epochs=1)
    vectors = found.listing(text, photo, owners)
    there = (np.arange(160) % 3 != 0) | ~np.isin(np.arange(160), [10, 11])
    assert (np.isfinite(vectors).all(1) == there).all()
    assert np.linalg.norm(vectors[there], axis=1) == pytest.approx(1, abs=1e-5)
    half = found.listing(None, photo, owners, 160)
    assert (np.isnan(half).all(1) == np.isin(np.arange(160), [10, 11])).all()


def test_saved_towers_of_other_widths_are_refused(tmp_path):
    from fb_marketplace.joint_embedding import JointEmbedding, Tower
    run = Run(tmp_path, "06_fusion")
    JointEmbedding(Tower([(np.eye(3), np.zeros(3))]), Tower([(np.eye(2), np.zeros(2))])).save(run, "models/joint")
    run.finish()
    with pytest.raises(ArtefactError, match="different widths"): JointEmbedding.load(run, "models/joint")


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.integers(1, 40), st.integers(0, 10_000))
def test_ranks_are_those_of_a_plain_search(listings, photos, seed):
    from fb_marketplace.baselines import unit_rows
    from fb_marketplace.joint_embedding import own_ranks
    random = np.random.default_rng(seed)
    queries, items = unit_rows(random.integers(-2, 3, size=(listings, 3))), unit_rows(random.normal(size=(photos, 3)))
    owner, groups = random.integers(listings, size=photos), random.integers(listings, size=listings)
    found = own_ranks(queries, items, np.arange(listings), owner, groups, block=7)
    for row, (rank, own, others) in enumerate(found.to_numpy()):
        order = [item for item in np.argsort(-(queries[row] @ items.T), kind="stable") if owner[item] == row or groups[owner[item]] != groups[row]]
        assert own == (owner == row).sum() and own + others == len(order)
        if own == 0: assert rank == 0
        elif queries[row].any(): assert rank == 1 + [owner[item] == row for item in order].index(True)


if __name__ == "__main__": train(sys.argv[1], after_epoch=die_after_the_second_epoch)
