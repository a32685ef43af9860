"""The first look: what its figures and its card say follows the data, and the card gives no listing away."""
import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest

matplotlib.use("agg")

from fb_marketplace import data, eda  # noqa: F401 (data gives a Run its tables)
from fb_marketplace.core import Run, manifests, read_json

TABLES = {
    "category": lambda listings, photos: eda.category_figure(listings, {}),
    "sub-category": lambda listings, photos: eda.sub_category_figure(listings, {}),
    "place": lambda listings, photos: eda.place_figure(listings),
    "price": lambda listings, photos: eda.price_figure(listings, {}, 3, 1000),
    "word count": lambda listings, photos: eda.word_count_figure(listings),
    "photos per listing": lambda listings, photos: eda.photos_per_listing_figure(listings),
    "photo": lambda listings, photos: eda.photo_figure(photos, (.5, 1.5)),
    "missing": eda.missing_figure,
    "duplicate": lambda listings, photos: eda.duplicate_figure(listings),
}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def tables(demo):
    run = Run(demo, "02_eda")
    return run.listings(), run.photos()


def test_every_figure_is_there_under_its_own_title(demo):
    figures = manifests(demo)["02_eda"]["figures"]
    names = "categories sub_categories places prices word_counts word_clouds word_map photos_per_listing photo_sizes missing duplicates leak label_noise".split()
    assert [figure["path"] for figure in figures] == [f"figures/{name}.png" for name in names]
    assert len({figure["title"] for figure in figures}) == len(names)


@pytest.mark.parametrize("name", TABLES)
def test_a_title_follows_the_data(tables, name):
    listings, photos = tables
    few = listings.sort_values("price").head(len(listings)//3).assign(image_num=1)
    theirs = photos[photos.product_id.isin(few["id"])].sort_values("image_ratio").head(100)
    first, second = (TABLES[name](*both).get_suptitle() for both in ((listings, photos), (few, theirs)))
    assert first and second and first != second


@pytest.mark.parametrize("name", TABLES)
def test_a_figure_of_nothing_says_so(tables, name):
    listings, photos = tables
    bare = listings.head(1).assign(price=float("nan"), lat=float("nan"), lon=float("nan"))
    assert TABLES[name](bare, photos.head(0)).get_suptitle()


def test_places_abroad_leave_the_national_grid(tables):
    listings = tables[0]
    assert eda.towns_of(listings).crs == eda.NATIONAL_GRID
    abroad = listings.assign(lat=listings.lat.fillna(50) - 5, lon=listings.lon.fillna(0) + 20)
    assert eda.towns_of(abroad).crs == eda.LONGITUDE_LATITUDE
    assert "coordinates" in eda.place_figure(abroad).get_suptitle()


def test_a_category_has_one_colour(demo):
    colours = eda.category_colours(read_json(demo/"features"/"categories.json"))
    assert len(set(colours.values())) == len(colours) > 5


def test_the_card_counts_and_tells_no_listing(demo, tables):
    listings, photos = tables
    card = (demo/"dataset-card.md").read_text()
    rejected = pd.read_parquet(demo/"features"/"rejected.parquet")
    for count in (len(listings), len(photos), len(listings) + (rejected["table"] == "products").sum()): assert f"{count:,}" in card
    for heading in ("rows kept", "Columns of a listing", "Known limits", "Rights"): assert heading in card
    told = [text for column in ("id", "product_name", "product_description", "url") for text in listings[column] if len(text) > 15]
    assert told and not [text for text in told if text in card]


def test_the_card_states_the_rights_it_was_given(demo):
    run = Run(demo, "02_eda")
    assert "CC BY 4.0" in eda.dataset_card(run, False, "CC BY 4.0")
    assert eda.UNSTATED_RIGHTS in eda.dataset_card(run, False)


def test_suspicious_labels_were_not_judged_on_test_listings(demo, tables):
    suspects = pd.read_parquet(demo/"features"/"suspicious_labels.parquet")
    split = tables[0].set_index("id").split[suspects["id"]]
    assert len(suspects) and set(split) <= {"train", "validation"}
    assert (suspects.given != suspects.suggested).all()
