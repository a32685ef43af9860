"""Networks of photo and text: the reference's sizes, what is kept on disk, every join, and a real kill."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SIDE, TOKENS, WORDS = 16, 12, 30
JOINS = ["concatenate", "gated", "attention"]


def catalogue(count, seed):
    """Squares and word numbers of four categories: the light of the photo tells two from two, the words the even from the odd."""
    numbers, codes = np.random.default_rng(seed), np.arange(count) % 4
    photos = numbers.integers(0, 100, (count, SIDE, SIDE, 3)) + 150*(codes//2)[:, None, None, None]
    words = numbers.integers(2, 16, (count, TOKENS)) + 14*(codes % 2)[:, None]
    return photos.astype(np.uint8), words.astype(np.int32), codes


class Squares:
    def __init__(self, squares): self.squares, self.shape, self.dtype = squares, squares.shape[1:], squares.dtype
    def __len__(self): return len(self.squares)
    def read(self, rows): return self.squares[rows]


def halves():
    """Small classifiers that were not trained; the one of photos has flip and dropout inside."""
    import keras
    from fb_marketplace.text_networks import build_text_network
    text = build_text_network("masked_pooling", WORDS, TOKENS, 8, 4, hidden=16)
    pixels = keras.Input((SIDE, SIDE, 3))
    x = keras.layers.AveragePooling2D(8)(keras.layers.Rescaling(1/127.5, -1)(keras.layers.RandomFlip("horizontal", seed=1)(pixels)))
    x = keras.layers.Dense(16, activation="relu", name="embedding")(keras.layers.Flatten()(x))
    return keras.Model(pixels, keras.layers.Dense(4)(keras.layers.Dropout(.3)(x)), name="photos"), text


def train(folder, fusion="concatenate", **options):
    import keras
    from fb_marketplace.fusion_networks import build_fusion_model, paired_dataset, train_fusion
    model = build_fusion_model(*halves(), 4, train_halves=True, fusion=fusion, units=16)
    (photos, words, codes), (other_photos, other_words, other_codes) = catalogue(160, 0), catalogue(80, 1)
    owners = np.append(np.arange(160), np.arange(0, 160, 4)) # every fourth has two photos
    squares, light = Squares(np.append(photos, photos[::4], 0)), keras.layers.RandomBrightness(.1, (0, 255), seed=0)
    epoch = lambda epoch: paired_dataset(squares, words, codes, owners, epoch=epoch, seed=3, batch=16, augment=light)
    return model, train_fusion(model, epoch, paired_dataset(Squares(other_photos), other_words, other_codes), folder, 4, 2e-2, quiet=True, **options)


def test_the_references_parameters():
    import keras
    from fb_marketplace.backbones import build_image_model
    from fb_marketplace.fusion_networks import build_fusion_model
    from fb_marketplace.text_networks import build_word2vec_cnn
    from fb_marketplace.transformers import build_bert, build_transformer_classifier, count_bert
    base = dict(vocab_size=28996, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072, max_position_embeddings=512, type_vocab_size=2,
                layer_norm_eps=1e-12, hidden_dropout_prob=.1, attention_probs_dropout_prob=.1)

    class Module(keras.layers.Layer):
        """BERT base with the counter that its module on TensorFlow Hub has beside it."""
        def build(self, shapes): self.bert, self.counter = build_bert(base), self.add_weight(shape=(), dtype="int32", trainable=False, initializer="zeros")
        def call(self, inputs): return self.bert(inputs)

    first = build_fusion_model(build_image_model("resnet50v2"), build_word2vec_cnn(27_992, 1458))
    assert first.count_params() == 36_606_901
    module = Module()
    second = build_fusion_model(build_image_model("efficientnetv2b3"), build_transformer_classifier(module, 13, "pooled_output", .5, 256))
    assert module.count_params() == count_bert(base) + 1 == 108_310_273
    assert second.count_params() == 123_280_716
    for model in (first, second): assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == 512*13 + 13


@pytest.mark.parametrize("fusion", JOINS)
def test_every_join_learns_what_neither_half_knows(fusion, tmp_path):
    import keras
    from fb_marketplace.fusion_networks import FUSIONS, fusion_log_proba, paired_dataset
    assert JOINS == list(FUSIONS)
    model, _ = train(tmp_path, fusion)
    photos, words, codes = catalogue(200, 2)
    listings = {"both": paired_dataset(Squares(photos), words, batch=50), "photo": paired_dataset(Squares(photos), np.zeros_like(words), batch=50),
                "text": paired_dataset(Squares(photos[:0]), words, owners=np.array([], int), batch=50)}
    said = {name: fusion_log_proba(model, data) for name, data in listings.items()}
    right = {name: (rows.argmax(1) == codes).mean() for name, rows in said.items()}
    assert right["both"] > .95 and right["photo"] < .6 and right["text"] < .6
    assert (said["photo"].argmax(1)//2 == codes//2).mean() > .95 and (said["text"].argmax(1) % 2 == codes % 2).mean() > .95
    model.save(tmp_path/"model.keras")
    loaded = keras.models.load_model(tmp_path/"model.keras", compile=False)
    for name, data in listings.items(): assert (fusion_log_proba(loaded, data) == said[name]).all()
    config = loaded.get_layer("modality_dropout").get_config()
    assert (config["rate"], config["photo"], config["seed"]) == (.2, .5, 0)


def test_features_are_fused_by_the_same_layers(tmp_path):
    import keras
    from fb_marketplace.fusion_networks import fuse_features, fusion_log_proba, paired_dataset
    for fusion in JOINS:
        model = fuse_features(6, 5, 4, 16, fusion, units=16)
        photo, text = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32), np.random.default_rng(1).normal(size=(8, 5)).astype(np.float32)
        photo[::2], text[3] = np.nan, np.nan
        said = fusion_log_proba(model, paired_dataset(photo, text))
        assert np.isfinite(said).all()
        model.save(tmp_path/"model.keras")
        assert (fusion_log_proba(keras.models.load_model(tmp_path/"model.keras", compile=False), paired_dataset(photo, text)) == said).all()


def test_half_precision_takes_flags_too():
    import keras
    from fb_marketplace.fusion_networks import build_fusion_model
    from fb_marketplace.training import prepare_device
    photos, words, codes = catalogue(8, 0)
    given = dict(photo=photos.astype(np.float32), words=words, has_photo=np.array([[1.], [0.]]*4, np.float32), has_text=np.array([[1.], [1.], [0.], [0.]]*2, np.float32))
    prepare_device("cpu", "mixed_float16")
    try:
        for fusion in JOINS: assert np.isfinite(build_fusion_model(*halves(), 4, fusion=fusion, units=16).predict_on_batch(given)).all(), fusion
    finally: prepare_device("cpu")
    assert keras.config.dtype_policy().name == "float32"


def test_a_training_is_logged(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    train(tmp_path/"training", log=tmp_path/"log")
    events = EventAccumulator(str(tmp_path/"log")).Reload()
    assert [event.step for event in events.Tensors("val_loss")] == [1, 2, 3, 4]
    assert any("modality_dropout" in node.name or "photo_half" in node.name for node in events.Graph().node)


def die_after_the_second_epoch(epoch, figures):
    if epoch == 2: os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_training_ends_at_the_same_weights(tmp_path):
    from fb_marketplace.core import InputError
    from fb_marketplace.training import weights_digest
    done = subprocess.run([sys.executable, __file__, str(tmp_path/"killed")], env=os.environ | dict(PYTHONPATH=str(Path(__file__).parent.parent)), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list((tmp_path/"killed").glob("epoch-002*"))
    (resumed, parts), (model, history) = train(tmp_path/"killed"), train(tmp_path/"whole")
    assert len(history) == 4 and parts.drop(columns="seconds").equals(history.drop(columns="seconds"))
    assert weights_digest(resumed) == weights_digest(model)
    with pytest.raises(InputError, match="other settings"): train(tmp_path/"killed", settings=dict(data="other"))


if __name__ == "__main__": train(Path(sys.argv[1]), after_epoch=die_after_the_second_epoch)
