"""The ways to a network that knows our photos: last blocks on maps from disk, and whole networks in two stages."""
import numpy as np
from PIL import Image

from fb_marketplace import backbones, image
from fb_marketplace.photo_input import PhotoSquares, cached_squares


class Drawn:
    """Photos whose category is their colour."""
    def open(self, name):
        shades = np.random.default_rng(int(name)).integers(0, 60, (48, 40, 3), np.uint8)
        shades[..., int(name) % 3] += 180
        return Image.fromarray(shades)


IDS, CODES = [str(number) for number in range(60)], np.arange(60) % 3
TRAIN, VALIDATION = np.arange(42), np.arange(42, 60)


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
