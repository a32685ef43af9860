"""Planted copies are found whatever the order of the rows, in time that grows with their number, and a split that parts them is caught."""
import time

import numpy as np
import pandas as pd
import pytest

from fb_marketplace.duplicates import SplitError, check_split, components, duplicates_report, group_listings, near_photos, near_texts, split_listings

VOCABULARY = np.array([f"word{number}" for number in range(2_000)])


def sentences(count, seed=0, length=40):
    return VOCABULARY[np.random.default_rng(seed).integers(0, len(VOCABULARY), (count, length))]


def joined(table):
    return [" ".join(row) for row in table]


def catalogue(seed=0, count=600):
    "Listings, photos and the pairs planted among them: same text, near text, near photo"
    dice, texts = np.random.default_rng(seed), sentences(count, seed)
    codes = dice.integers(0, 2**64, count, np.uint64)
    texts[100:130] = texts[:30]
    texts[130:160] = texts[30:60]
    texts[130:160, 7] = "otherwise"
    codes[160:190] = codes[60:90] ^ np.uint64(0b1001) ^ np.uint64(1 << 63)
    listings = pd.DataFrame(dict(id=[f"{number:04d}" for number in range(count)], product_name="thing", product_name_description=joined(texts),
                                 root_category=dice.choice(["lamps", "cups"], count), price=dice.integers(1, 99, count).astype(float)))
    photos = pd.DataFrame(dict(product_id=listings["id"], phash=[f"{code:016x}" for code in codes.tolist()]))
    return listings, photos, [(number + 100, number) for number in range(90)]


def partition(ids, groups):
    return set(pd.Series(list(ids)).groupby(groups).agg(frozenset))


def seconds(function, *arguments):
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


@pytest.mark.parametrize("seed", range(3))
def test_planted_copies_are_found_and_nothing_else(seed):
    listings, photos, pairs = catalogue(seed)
    groups = group_listings(listings, photos)
    assert partition(range(600), groups) == {frozenset(pair) for pair in pairs} | {frozenset([number]) for number in set(range(600)) - {number for pair in pairs for number in pair}}
    report = duplicates_report(listings, photos, groups)
    assert [report[f"listings linked by {kind}"] for kind in ("same text", "near text", "same photo", "near photo")] == [60, 60, 0, 60]
    assert (report["groups of copies"], report["listings in them"], report["listings in the largest"]) == (90, 180, 2)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_rows_does_not_matter(seed):
    listings, photos, _ = catalogue(seed)
    listings.loc[200:400, "product_name_description"] = joined(np.hstack([np.tile(sentences(1, 9, 30), (201, 1)), sentences(201, seed, 10)])) # a crowded bucket
    shuffled, mixed = listings.sample(frac=1, random_state=seed), photos.sample(frac=1, random_state=seed + 1)
    assert partition(listings["id"], group_listings(listings, photos)) == partition(shuffled["id"], group_listings(shuffled, mixed))


def flood(count, own):
    "Texts of one template with `own` words of 40 that are each listing's"
    return joined(np.hstack([np.tile(sentences(1, 1, 40 - own), (count, 1)), sentences(count, 2, own)]))


@pytest.fixture(scope="module")
def plain_seconds():
    return seconds(near_texts, joined(sentences(8_000)))


@pytest.mark.parametrize("own", [1, 9])
def test_a_flood_of_one_template_costs_little_more_than_other_texts(own, plain_seconds):
    flooded = seconds(near_texts, flood(8_000, own))
    assert flooded < 4*plain_seconds # all with all would take thousands of times as long
    assert flooded < 8*seconds(near_texts, flood(2_000, own))


def test_a_flood_is_one_group_and_hides_no_copies():
    texts = flood(8_000, 1)
    assert len(set(components(near_texts(texts), len(texts)))) == 1
    apart = sentences(8_000, 3, 12)
    apart[4_000:] = apart[:4_000]
    apart[4_000:, -1] = "otherwise"
    template = np.tile(sentences(1, 1, 16), (8_000, 1)) # too short to join the listings that share it
    groups = components(near_texts(joined(np.hstack([template, apart]))), 8_000)
    assert (groups[:4_000] == groups[4_000:]).mean() > .98 and len(set(groups)) > 3_960


def test_a_flood_of_one_placeholder_photo_costs_little_more_than_other_photos():
    dice = np.random.default_rng(0)
    codes, shift = dice.integers(0, 2**64, 8_000, np.uint64), np.uint64(1)
    placeholder = np.full(8_000, codes[0])
    for _ in range(3): placeholder ^= shift << dice.integers(0, 64, 8_000, np.uint64)
    plain, flooded = ([f"{code:016x}" for code in codes.tolist()] for codes in (codes, placeholder))
    assert seconds(near_photos, flooded) < 4*seconds(near_photos, plain)
    assert len(set(components(near_photos(flooded), 8_000))) == 1


def test_every_pair_of_hashes_within_three_bits_is_linked():
    dice = np.random.default_rng(0)
    codes = dice.integers(0, 2**64, 2_000, np.uint64)
    spoiled = codes.copy()
    for _ in range(3): spoiled ^= np.uint64(1) << dice.integers(0, 64, 2_000, np.uint64)
    groups = components(near_photos([f"{code:016x}" for code in [*codes.tolist(), *spoiled.tolist()]]), 4_000)
    assert (groups[:2_000] == groups[2_000:]).all() and len(set(groups)) == 2_000


@pytest.fixture
def parted():
    listings, photos, _ = catalogue()
    listings["group"] = group_listings(listings, photos)
    listings["split"] = split_listings(listings.root_category, listings["group"].to_numpy(), dict(train=.7, validation=.15, test=.15))
    return listings, photos


def test_the_split_keeps_copies_together_and_the_shares(parted):
    check_split(*parted)
    shares = parted[0].groupby("root_category").split.value_counts(normalize=True).unstack()
    assert (abs(shares - pd.Series(dict(test=.15, train=.7, validation=.15))) < .03).all(axis=None)


def test_a_torn_group_is_caught(parted):
    listings, photos = parted
    listings.loc[[0, 100], "split"] = ["train", "test"]
    with pytest.raises(SplitError, match="1 group stands"): check_split(listings, photos)


def test_a_photo_in_two_parts_is_caught(parted):
    listings, photos = parted
    photos.loc[[300, 301], "phash"] = "00000000000000ff"
    listings.loc[[300, 301], "split"] = ["train", "test"]
    with pytest.raises(SplitError, match="photo hash stands"): check_split(listings, photos)


def test_a_listing_in_two_parts_is_caught(parted):
    listings, photos = parted
    again = listings[300:301].assign(split="test" if listings.split[300] == "train" else "train")
    with pytest.raises(SplitError, match="1 listing stands"): check_split(pd.concat([listings, again]), photos)


def test_what_is_not_learned_from_may_stand_anywhere(parted):
    listings, photos = parted
    listings.loc[[0, 100], "split"] = ["train", "unlabelled"]
    check_split(listings, photos)
