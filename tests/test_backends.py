"""Networks on other backends of Keras, where these are installed."""
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

BUILD = """
import sys
import numpy as np
from fb_marketplace.backbones import build_image_model, keras, simple_cnn
assert keras.backend.backend() == sys.argv[1]
photos = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype("float32")
for model, name in (simple_cnn(13), "simple"), (build_image_model("mobilenetv2", image_size=64), "mobile"):
    path = f"{sys.argv[2]}/{name}.weights.h5"
    if sys.argv[1] == "tensorflow": model.save_weights(path)
    else: model.load_weights(path)
    np.save(f"{sys.argv[2]}/{name}-{sys.argv[1]}.npy", model.predict_on_batch(photos))
"""


def build(backend, folder):
    done = subprocess.run([sys.executable, "-c", BUILD, backend, str(folder)], env=os.environ | dict(KERAS_BACKEND=backend), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backends")
    build("tensorflow", folder)
    return folder


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_models_say_the_same_on_every_backend(backend, reference):
    if not importlib.util.find_spec(backend): pytest.skip(f"{backend} is not installed: pip install 'fb-marketplace[{backend}]'")
    build(backend, reference)
    for name in ("simple", "mobile"):
        np.testing.assert_allclose(np.load(reference/f"{name}-{backend}.npy"), np.load(reference/f"{name}-tensorflow.npy"), atol=1e-3)
