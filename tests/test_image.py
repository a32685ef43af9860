"""The ways to a network that knows our photos: last blocks on maps from disk, whole networks in two stages, all of them in one step."""
import json

import numpy as np
import pytest
from PIL import Image

import fb_marketplace.data
from fb_marketplace import backbones, image
from fb_marketplace.core import Run
from fb_marketplace.photo_input import PhotoSquares, cached_squares

from conftest import run_all


class Drawn:
    """Photos whose category is their colour."""
    def open(self, name):
        shades = np.random.default_rng(int(name)).integers(0, 60, (48, 40, 3), np.uint8)
        shades[..., int(name) % 3] += 180
        return Image.fromarray(shades)


IDS, CODES = [str(number) for number in range(60)], np.arange(60) % 3
TRAIN, VALIDATION = np.arange(42), np.arange(42, 60)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of the form that Keras saves, of random numbers that keep the signal alive (He et al. 2015)."""
    folder, numbers = tmp_path_factory.mktemp("weights"), np.random.default_rng(0)
    base = backbones.build_base(backbones.find_encoder("mobilenetv3small"), None, 64)
    for weight in base.trainable_weights:
        if len(weight.shape) == 4: weight.assign(numbers.normal(0, (2/np.prod(weight.shape[:2 if weight.shape[3] == 1 else 3]))**.5, weight.shape))
    base.save_weights(folder/"mobilenetv3small_notop.weights.h5")
    return folder


def test_last_blocks_learn_from_maps_on_disk(tmp_path, weights):
    photos = PhotoSquares(Drawn(), IDS, 64)
    lower, upper, maps = image.lower_maps("mobilenetv3small", str(weights), photos, TRAIN, tmp_path/"maps", views=1)
    before = lower.get_weights()
    lessons = image.Lessons(maps, CODES, TRAIN, VALIDATION, 3)
    learned = image.tune_upper("mobilenetv3small", lower, upper, lessons, 64, tmp_path/"upper", epochs=2, rate=1e-2, batch=14)
    whole = image.encode(learned.encoder, Drawn(), IDS)
    np.testing.assert_allclose(image.features_of(learned, maps.plain, np.arange(60)), whole, atol=.02*abs(whole).max())
    for old, new in zip(before, lower.get_weights()): np.testing.assert_array_equal(old, new)
    assert len(learned.history) == 2
    again = image.tune_upper("mobilenetv3small", lower, upper, lessons, 64, tmp_path/"upper", epochs=2, rate=1e-2, batch=14)
    assert again.history.seconds.tolist() == learned.history.seconds.tolist() # it was not trained again
    np.testing.assert_array_equal(again.head.coef, learned.head.coef)


def test_a_network_in_two_stages_keeps_its_normalisation(tmp_path, weights):
    records = cached_squares(PhotoSquares(Drawn(), IDS, 64), tmp_path/"squares.npy")
    def moments(encoder): return [weight.numpy() for layer in encoder.layers if isinstance(layer, backbones.keras.Model) for weight in layer.weights if "moving" in weight.name]
    learned = image.train_network("mobilenetv3small", image.Lessons(records, CODES, TRAIN, VALIDATION, 3), tmp_path/"network", str(weights), frozen_epochs=1, epochs=1, rate=1e-4, batch=14)
    untouched = [weight.numpy() for weight in backbones.build_base(backbones.find_encoder("mobilenetv3small"), str(weights), 64).weights if "moving" in weight.name]
    assert len(untouched) == len(moments(learned.encoder)) > 10
    for old, new in zip(untouched, moments(learned.encoder)): np.testing.assert_array_equal(old, new)
    assert learned.encoder.output_shape == (None, 256) and learned.head.coef.shape == (3, 256) and len(learned.history) == 2


def test_a_step_with_frozen_and_tuned_backbones(tmp_path, weights):
    done = run_all("--out", tmp_path/"run", "--steps", "data,image", "--weights", weights, *(word for pair in dict(
        demo_listings=150, min_listings=2, encoders="mobilenetv3small", tuned="mobilenetv3small", network="", tuned_epochs=1, tuned_views=1, search_trials=1).items() for word in ("-p", *map(str, pair))))
    assert done.returncode == 0, done.stdout + done.stderr
    settings = json.loads((tmp_path/"run"/"models"/"image"/"encoders.json").read_text())
    assert settings["encoders"] == ["mobilenetv3small", "mobilenetv3small_tuned"] and [head["channels"] for head in settings["heads"]] == [[0, 576], [576, 1152]]
    assert not (tmp_path/"run"/"features"/"work").exists() and list((tmp_path/"run"/"logs"/"image").rglob("events.*"))
    model = image.PhotoModel.load(Run(tmp_path/"run", "test"))
    assert np.isclose(np.exp(model.log_proba(model.features([Drawn().open("1")]))).sum(), 1)
