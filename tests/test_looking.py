"""Looking at an image model: maps find what decides, a page gives nothing away to a hostile text, the same input gives the same bytes."""
import hashlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

matplotlib.use("agg")

from fb_marketplace import looking
from fb_marketplace.baselines import unit_rows
from fb_marketplace.core import InputError

HOSTILE = """</b><script>alert("1")</script><img src=x onerror='alert(1)'>&amp;{{ 7*7 }}"""


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


@pytest.fixture
def cloud():
    """Vectors around three directions, their categories, and a small photo for each."""
    random = np.random.default_rng(0)
    codes = np.arange(60) % 3
    vectors = unit_rows(3*np.eye(5)[codes] + random.normal(size=(60, 5)))
    return vectors, codes, [Image.new("RGB", (30, 40), tuple(random.integers(0, 256, 3).tolist())) for _ in codes]


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data): self.text.append(data)


def test_a_page_escapes_all_text(cloud):
    vectors, codes, photos = cloud
    page = looking.photo_map_html(vectors[:, :2], photos, [HOSTILE]*60, {}, [HOSTILE]*60, title=HOSTILE)
    parsed = Tags(page)
    assert not parsed.tags & {"script", "iframe", "link", "object"} and not any(name.startswith("on") for name in parsed.attributes)
    assert parsed.text.count(HOSTILE) == 1 + 1 + 1 + 2*60  # title, heading, name, and a label and a caption for each photo


def test_a_page_loads_nothing(cloud):
    vectors, codes, photos = cloud
    page = looking.photo_map_html(vectors[:, :2], photos, [f"kind {code}" for code in codes], {"kind 0": "#D55E00"})
    assert "default-src 'none'" in page and "http" not in page.replace("http-equiv", "")
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'src="([^"]*)"', page))


def test_a_colour_that_is_none_is_refused(cloud):
    vectors, codes, photos = cloud
    with pytest.raises(ValueError): looking.photo_map_html(vectors[:, :2], photos, ["a"]*60, {"a": "red;background:url(x)"})


PROGRAM = """
import hashlib, numpy as np
from fb_marketplace import looking
print(hashlib.sha256(looking.embedding_map(np.random.default_rng(0).normal(size=(90, 12)), 1).tobytes()).hexdigest())
"""


def test_a_map_has_the_same_bytes_in_another_process_with_other_threads():
    here = looking.embedding_map(np.random.default_rng(0).normal(size=(90, 12)), 1)
    there = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "2"}).stdout.strip()
    assert hashlib.sha256(here.tobytes()).hexdigest() == there


def test_pages_and_figures_have_the_same_bytes(cloud, tmp_path):
    vectors, codes, photos = cloud
    xy = looking.embedding_map(vectors)
    assert looking.photo_map_html(xy, photos, ["a"]*60, {}) == looking.photo_map_html(xy, photos, ["a"]*60, {})
    for name in "ab": looking.draw_map(xy, codes, list("abc"), {}).savefig(tmp_path/name, format="png", metadata=dict(Software=None))
    assert (tmp_path/"a").read_bytes() == (tmp_path/"b").read_bytes()


@pytest.mark.parametrize("draw, says", [
    (lambda: looking.draw_attention([], [], []), "0 rows"),
    (lambda: looking.draw_attention(np.zeros((2, 4, 4, 3), np.uint8), np.zeros((1, 2, 2)), ["a", "b"]), "there are 2, 1, 2 rows"),
    (lambda: looking.draw_filters(np.zeros((3, 3, 3, 0))), r"not \(3, 3, 3, 0\)"),
    (lambda: looking.draw_neighbours(None, [], np.empty((0, 3), int), np.zeros(1, int), ["a"]), "0 rows"),
    (lambda: looking.confusion_table([], [], ["a", "b"]), "0 rows"),
    (lambda: looking.confusion_table([0], [0], ["lamps"]), "two categories or more; there are only .*lamps"),
    (lambda: looking.embedding_map(np.empty((0, 8))), "0 rows, but 4 are needed"),
    (lambda: looking.embedding_map(np.full((9, 8), np.nan)), "row 0 of the vectors is not finite"),
    (lambda: looking.draw_map(np.zeros((5, 2)), np.zeros(5, int), ["lamps"], {}), "all of lamps"),
    (lambda: looking.draw_photo_map(np.empty((0, 2)), []), "0 rows"),
    (lambda: looking.photo_map_html(np.empty((0, 2)), [], [], {}), "0 rows"),
    (lambda: looking.occlusion(None, np.zeros((8, 8, 3), np.uint8), 0, patch=9), "1 <= stride <= patch <= 8"),
    (lambda: looking.class_activation(np.zeros((1, 2, 2, 5)), np.zeros((1, 4))), "5 channels, but there are 4"),
])
def test_what_cannot_be_drawn_is_said_in_one_line(draw, says):
    with pytest.raises(InputError, match=says) as error: draw()
    assert "\n" not in str(error.value)


def test_a_model_that_says_nothing_is_drawn_and_said():
    figure = looking.draw_attention(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 2, 2)), ["a", "b"])
    assert " ".join(figure.get_suptitle().split()) == "On none of these photos does anything speak for the category"


def test_neighbours_leave_out_the_own_listing(cloud):
    vectors, codes, photos = cloud
    listing = np.arange(60)//4
    found = looking.nearest_photos(vectors, np.arange(60), 5, listing)
    assert not (listing[found] == listing[:, None]).any()
    likeness = np.take_along_axis(vectors @ vectors.T, found, 1)
    assert (np.diff(likeness) <= 0).all() and (codes[found] == codes[:, None]).mean() > .8
    figure = looking.draw_neighbours(photos.__getitem__, [0], looking.nearest_photos(vectors[:3], [0], 4), codes, list("abc"))
    assert " of the 2 nearest" in figure.get_suptitle()


def test_what_is_mixed_up_stands_together():
    random = np.random.default_rng(0)
    partner = random.permutation(12).reshape(6, 2)
    other = np.empty(12, int)
    other[partner] = partner[:, ::-1]
    codes = np.repeat(np.arange(12), 30)
    table = looking.confusion_table(codes, np.where(random.random(360) < .3, other[codes], codes), [f"c{code}" for code in range(12)])
    places = table.index.get_indexer([f"c{code}" for code in range(12)])
    assert (abs(places[partner[:, 0]] - places[partner[:, 1]]) == 1).all() and table.to_numpy().sum() == 360


def nested():
    """A frozen network within a network, as pretrained ones come: three colours averaged over a window, pooled, classified."""
    import keras
    colour = keras.layers.Conv2D(3, 3, padding="same", use_bias=False, activation="relu")
    pixels = keras.Input((24, 24, 3))
    base = keras.Model(pixels, colour(pixels), name="base")
    colour.set_weights([np.einsum("rc,io->rcio", np.ones((3, 3)), 1.5*np.eye(3) - .5)])
    base.trainable = False
    outer = keras.Input((24, 24, 3))
    pooled = keras.layers.GlobalAveragePooling2D(name="pooled")(base(keras.layers.Rescaling(1/255)(outer)))
    return looking.with_classifier(keras.Model(outer, pooled), np.eye(3), np.zeros(3))


def test_a_nested_frozen_network_is_looked_into():
    from fb_marketplace.core import quiet_stderr
    with quiet_stderr(): model = nested()
    photos, codes = np.full((3, 24, 24, 3), 90, np.uint8), np.arange(3)
    for code in codes: photos[code, 4*code:4*code + 6, 10:16, code] = 250
    asked = [looking.grad_cam(model, layer, photos, codes) for layer in ("", "pooled")] + [looking.class_activation(looking.feature_maps(model, photos), np.eye(3)[codes])]
    asked.append(looking.zero_to_one([looking.occlusion(lambda some: np.asarray(model(some)), photo, code, 6, 2) for photo, code in zip(photos, codes)]))
    for maps in asked:
        tops = np.array([np.unravel_index(heat.argmax(), heat.shape) for heat in maps])
        assert ((tops >= np.stack([4*codes, [10]*3], 1)) & (tops < np.stack([4*codes + 6, [16]*3], 1))).all()
    np.testing.assert_allclose(asked[0], asked[2], atol=1e-5)
    with pytest.raises(InputError, match="base has no maps.*the pooling layer behind it"): looking.maps_of(model, "base")
    assert looking.first_filters(model).shape == (3, 3, 3, 3)
