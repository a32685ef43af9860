"""How pretrained encoders are found: by the weights' folder, by Keras's own download, or not at all."""
from dataclasses import replace

import numpy as np
import pytest

from fb_marketplace import backbones, image
from fb_marketplace.core import InputError, sha256_file


@pytest.fixture
def known(tmp_path, monkeypatch):
    """A small network of the same form as a pretrained one, in a file whose hash is made the known one."""
    net = backbones.keras.Sequential([backbones.keras.Input((256, 256, 3)), backbones.keras.layers.Conv2D(5, 3, strides=32)])
    encoder = backbones.ENCODERS["efficientnet_lite0"]
    net.save(tmp_path/encoder.file)
    return replace(encoder, sha256=sha256_file(tmp_path/encoder.file)), tmp_path


def test_a_known_file_is_opened_and_pooled(known):
    encoder, folder = known
    model = backbones.with_pooling(encoder, backbones.build_base(encoder, str(folder)))
    photos = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    assert model.predict_on_batch(photos).shape == (2, 5) and not model.trainable_variables


def test_a_changed_file_is_refused_before_it_is_opened(known, monkeypatch):
    encoder, folder = known
    with open(folder/encoder.file, "ab") as file: file.write(b"!")
    monkeypatch.setattr(backbones.keras.models, "load_model", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(InputError, match="only known ones are opened"): backbones.build_base(encoder, str(folder))


def test_a_download_that_fails_names_the_ways_out(tmp_path, monkeypatch):
    def refuse(**_): raise OSError("no route to host")
    monkeypatch.setattr(backbones.keras.applications, "MobileNetV2", refuse)
    with pytest.raises(InputError, match="no route to host.*--weights.*simple_cnn"): backbones.build_base(backbones.ENCODERS["mobilenetv2"], str(tmp_path))


def test_features_in_pieces_survive_a_crash(known, tmp_path):
    encoder, folder = known
    model = backbones.with_pooling(encoder, backbones.build_base(encoder, str(folder)))
    class Store:
        asked = []
        def open(self, name):
            self.asked.append(name)
            if name == "7" and len(self.asked) < 12: raise KeyboardInterrupt
            return image.Image.new("RGB", (40, 30), (int(name)*20, 0, 0))
    ids, store = [str(number) for number in range(10)], Store()
    with pytest.raises(KeyboardInterrupt): image.encode(model, store, ids, pieces=tmp_path/"pieces", piece=3)
    done = sorted(path.name for path in (tmp_path/"pieces").iterdir())
    store.asked = ["x"]*20
    resumed = image.encode(model, store, ids, pieces=tmp_path/"pieces", piece=3)
    assert len(done) == 2 and not {"0", "1", "2", "3", "4", "5"} & set(store.asked)
    np.testing.assert_array_equal(resumed, image.encode(model, store, ids))
