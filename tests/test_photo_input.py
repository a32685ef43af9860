"""Squares in a file, and batches from it: whatever the order, the kill or the size of the set."""
import resource
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from fb_marketplace import photo_input
from fb_marketplace.core import ArtefactError, InputError
from fb_marketplace.photos import PhotoFiles, PhotoStore, PhotoWriter
from fb_marketplace.records import RecordFile, read_note

keras, tf = photo_input.keras, photo_input.tf


def colour(number): return (number % 256, number//256 % 256, 77)


def write_zip(path, count, side=40):
    with PhotoWriter(path, 320) as writer:
        for number in range(count): writer.add(f"{number}.jpg", Image.new("RGB", (side, side + 10), colour(number)))
    return path


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    squares = photo_input.PhotoSquares(PhotoStore(write_zip(folder/"photos.zip", 50)), map(str, range(50)), 16)
    with photo_input.cached_squares(squares, folder/"squares.npy", piece=16) as file: yield file


def test_the_cache_holds_what_serving_sees(records):
    store = PhotoStore(records.path.parent/"photos.zip")
    seen = np.stack([np.asarray(photo_input.square(store.open(str(number)), 16, "stretch")) for number in range(50)])
    np.testing.assert_array_equal(records.read(range(50)), seen)
    np.testing.assert_array_equal(np.load(records.path, allow_pickle=False), seen)


def test_a_zip_and_a_folder_open_alike(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path/"a.png")
    with zipfile.ZipFile(tmp_path/"photos.zip", "w") as archive: archive.write(tmp_path/"a.png", "images/a.png")
    for path in (tmp_path/"photos.zip", tmp_path):
        assert photo_input.PhotoSquares(PhotoFiles(path), ["a"], 8).read([0])[0, 4, 4].tolist() == [255, 0, 0]
    with pytest.raises(InputError, match="photo b cannot be opened"): photo_input.PhotoSquares(PhotoFiles(tmp_path), ["b"], 8).read([0])


def test_another_side_or_source_is_decoded_anew(tmp_path):
    store = PhotoStore(write_zip(tmp_path/"photos.zip", 5))
    for side, source in ((8, "a"), (8, "a"), (12, "a"), (12, "b")):
        with photo_input.cached_squares(photo_input.PhotoSquares(store, map(str, range(5)), side), tmp_path/"squares.npy", source) as file:
            assert file.shape == (side, side, 3) and file.note["about"]["source"] == source and len(file) == 5


FILL = """
import sys, time
import numpy as np
from fb_marketplace.records import cached_records
def compute(rows):
    time.sleep(.03)
    return np.random.default_rng(rows.start).normal(size=(len(rows), 7))
cached_records(sys.argv[1], compute, 200, (7,), "float16", {}, piece=10)
"""


def test_kills_leave_whole_records(tmp_path):
    path = tmp_path/"maps.npy"
    for moment in (.8, 1.2):
        run = subprocess.Popen([sys.executable, "-c", FILL, path])
        time.sleep(moment)
        run.send_signal(signal.SIGKILL)
        run.wait()
        if note := read_note(path): assert note["count"] % 10 == 0
    for name in (path, tmp_path/"calm.npy"): subprocess.run([sys.executable, "-c", FILL, name], check=True)
    assert path.read_bytes() == (tmp_path/"calm.npy").read_bytes() and np.load(path).shape == (200, 7)


def test_a_damaged_note_is_named(tmp_path):
    with RecordFile(tmp_path/"a.npy", (2,), "float32") as file: file.append(np.ones((3, 2)))
    (tmp_path/"a.json").write_text("{")
    with pytest.raises(ArtefactError, match="a.json is damaged"): RecordFile(tmp_path/"a.npy", (2,), "float32")


def epochs(records, order, numbers, **options):
    data = photo_input.photo_dataset(records, np.arange(50), order=order, batch=8, **options)
    found = []
    for number in numbers:
        order.start(number)
        found.append([[part.numpy() for part in step] for step in data])
    return found


def test_an_epoch_follows_from_seed_and_number(records):
    labels = lambda found: [np.concatenate([step[1] for step in epoch]).tolist() for epoch in found]
    first, second = labels(epochs(records, photo_input.EpochOrder(1), [0, 1]))
    assert first != second and sorted(first) == sorted(second) == list(range(50))
    assert labels(epochs(records, photo_input.EpochOrder(1), [1])) == [second]
    assert labels(epochs(records, photo_input.EpochOrder(2), [1])) != [second]


def test_photos_keep_their_labels_and_weights(records):
    for photos, labels, weights in photo_input.photo_dataset(records, np.arange(50)[::-1], np.arange(50)[::-1], photo_input.EpochOrder(3), 7, weights=np.arange(50)[::-1]/10):
        assert abs(photos.numpy()[:, 8, 8, 0].astype(int) - labels.numpy()).max() <= 3 # as JPEG keeps colours
        np.testing.assert_allclose(weights.numpy(), labels.numpy()/10, rtol=1e-6)


def test_variations_follow_the_epoch_too(records):
    def run(numbers):
        vary = photo_input.augmentation(seed=4)
        return epochs(records, photo_input.EpochOrder(1, vary), numbers, augment=vary)
    for left, right in zip(run([0, 1])[1], run([1])[0]):
        for one, two in zip(left, right): np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", [*photo_input.AUGMENTATIONS])
def test_every_variation_stays_a_photo(name, records):
    photos = records.read(range(2)).astype("float32")
    varied = np.asarray(photo_input.augmentation(2., 1, (name,))(photos, training=True))
    assert varied.shape == photos.shape and varied.dtype == np.float32 and varied.min() >= -1 and varied.max() <= 256


def test_fit_resumes_with_the_order_it_would_have_had(records):
    def train(*stages):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Rescaling(1/255), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(50)])
        model.compile(keras.optimizers.SGD(.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        for start, stop in stages:
            order = photo_input.EpochOrder(5)
            model.fit(photo_input.photo_dataset(records, np.arange(50), order=order, batch=8), initial_epoch=start, epochs=stop, callbacks=[order], verbose=0)
        return model.get_weights()
    for left, right in zip(train((0, 3)), train((0, 1), (1, 3))): np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("options, said", [
    (dict(labels=np.arange(3)), "3 labels or weights do not fit 50 photos"),
    (dict(weights=np.ones(50)), "weights without labels"),
    (dict(labels=np.arange(50), mix=photo_input.mixing("cutmix")), "labels of shape"),
])
def test_what_does_not_fit_is_said(records, options, said):
    with pytest.raises(InputError, match=said): photo_input.photo_dataset(records, **options)


def test_memory_does_not_grow_with_the_records(tmp_path):
    with RecordFile(tmp_path/"big.npy", (128, 128, 3), "uint8") as file:
        for _ in range(40): file.append(np.zeros((64, 128, 128, 3), np.uint8))
        order, before = photo_input.EpochOrder(0), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for photos in photo_input.photo_dataset(file, order=order, batch=32): pass
        assert len(file)*file.size > 120e6 and (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)*1024 < 60e6
