"""A store of embeddings: what goes in comes out, after any kill, and nothing damaged or foreign is opened."""
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fb_marketplace import embeddings
from fb_marketplace.baselines import unit_rows
from fb_marketplace.core import ArtefactError, InputError
from fb_marketplace.embeddings import EmbeddingStore, EmbeddingWriter, embed_photos, mean_by_listing
from fb_marketplace.photos import PhotoFiles, PhotoStore, PhotoWriter

MAKER = dict(name="means", sha256="0")
FILES = ("vectors.npy", "ids.jsonl", "bad.csv", "manifest.json")


def means(squares): return squares.reshape(len(squares), -1, 48).mean(1).astype(np.float32)


class Flat:
    """Photos of one colour each, without any file."""
    def open(self, name): return Image.new("RGB", (20, 20), (int(name) % 256, int(name)//256 % 256, 9))


def embed(folder, ids, photos=None, **options):
    return embed_photos(means, photos or Flat(), ids, folder, MAKER, **dict(sides=(16,), batch=4, piece=8, progress=False) | options)


def numbers(count): return [str(number) for number in range(count)]


def contents(folder): return {name: (folder/name).read_bytes() for name in FILES}


@pytest.fixture
def store(tmp_path): return embed(tmp_path/"store", numbers(21))


def test_vectors_are_those_of_the_squares(store):
    want = unit_rows(means(np.stack([np.asarray(Flat().open(name).resize((16, 16))) for name in store.ids])))
    np.testing.assert_allclose(store[store.ids], want, atol=1e-6)
    np.testing.assert_array_equal(np.concatenate([part for _, part in store.pieces(4)]), store.vectors)
    assert isinstance(store.vectors, np.memmap) and len(store) == 21 and "3" in store and "x" not in store
    np.testing.assert_array_equal(store["3"], store[["4", "3"]][1])
    with pytest.raises(KeyError, match="x"): store[["1", "x"]]


@pytest.mark.parametrize("harm, error, said", [
    (lambda folder: (folder/"manifest.json").unlink(), ArtefactError, "not finished"),
    (lambda folder: (folder/"manifest.json").write_text("{"), ArtefactError, "not a manifest of schema"),
    (lambda folder: (folder/"ids.jsonl").unlink(), ArtefactError, "ids.jsonl is not the file"),
    (lambda folder: os.truncate(folder/"vectors.npy", 300), ArtefactError, "vectors.npy is not the file"),
    (lambda folder: shutil.rmtree(folder), InputError, "holds no embeddings"),
])
def test_a_damaged_store_is_refused(store, harm, error, said):
    harm(store.folder)
    with pytest.raises(error, match=said) as caught: EmbeddingStore(store.folder)
    assert "\n" not in str(caught.value)


def test_damage_is_not_grown_upon(store):
    with open(store.folder/"ids.jsonl", "a") as file: file.write('"21"\n')
    with pytest.raises(ArtefactError, match="ids.jsonl"): embed(store.folder, numbers(30))


def test_a_store_of_another_encoder_is_refused(store):
    with pytest.raises(ArtefactError, match="differ in sha256"): EmbeddingStore(store.folder, MAKER | dict(sha256="1"))
    with pytest.raises(ArtefactError, match="differ in sides"): embed(store.folder, numbers(30), sides=(32,))
    with pytest.raises(ArtefactError, match="other records"): EmbeddingWriter(store.folder, 3, store.encoder)
    assert len(EmbeddingStore(store.folder, MAKER)) == 21


@pytest.mark.parametrize("options, said", [
    (dict(ids=["1", "2", "1"]), "photo 1 is asked for twice"),
    (dict(ids=["1"], batch=3), "choose a batch that divides it"),
    (dict(ids=["1"], how="squeeze"), "squares are made by"),
])
def test_bad_input_is_one_line(tmp_path, options, said):
    with pytest.raises(InputError, match=said): embed(tmp_path/"store", **options)


def test_an_encoder_that_gives_no_numbers_is_named(tmp_path):
    with pytest.raises(InputError, match="embedding of 0 is not finite.*means"):
        embed_photos(lambda squares: np.full((len(squares), 2), np.nan), Flat(), numbers(3), tmp_path, MAKER, (8,), progress=False)


def test_bad_photos_stop_nothing(tmp_path):
    folder = tmp_path/"photos"
    folder.mkdir()
    for name in numbers(12): Flat().open(name).save(folder/f"{name}.png")
    (folder/"3.png").write_bytes((folder/"3.png").read_bytes()[:60])
    (folder/"4.png").write_bytes(b"")
    Image.new("RGB", (1, 3000)).save(folder/"5.png") # odd, but a photo
    found = embed(tmp_path/"store", numbers(13), PhotoFiles(folder))
    assert set(found.bad()["id"]) == {"3", "4", "12"} and set(found.bad().rule) == {"damaged", "no image", "no file"} and len(found) == 10
    np.testing.assert_array_equal(found["11"], embed(tmp_path/"flat", numbers(12))["11"])
    Flat().open("3").save(folder/"3.png")
    assert set(embed(tmp_path/"store", numbers(12), PhotoFiles(folder)).ids) == set(numbers(12)) - {"4"} # mended


def test_a_store_of_bad_photos_only_is_empty(tmp_path):
    (tmp_path/"a.jpg").write_text("no photo")
    found = embed(tmp_path/"store", ["a"], PhotoFiles(tmp_path))
    assert len(found) == 0 and len(found.bad()) == 1 and found[[]].shape == (0, 48)


def test_a_store_reads_a_run_s_photos(tmp_path):
    with PhotoWriter(tmp_path/"photos.zip", 320) as writer: writer.add("a.jpg", Flat().open("7"))
    found = embed(tmp_path/"store", ["a", "lost"], PhotoStore(tmp_path/"photos.zip"))
    assert found.ids == ["a"] and found.bad().reason.tolist() == ["no photo is named lost"]


class Slow(Flat):
    """As if from a slow disk, with faults."""
    def open(self, name):
        time.sleep(.004)
        if int(name) % 9 == 5: raise OSError("broken data stream")
        return super().open(name)


WORK = """
import sys
sys.path.insert(0, "tests")
from test_embeddings import Slow, embed, numbers
from pathlib import Path
embed(Path(sys.argv[1]), numbers(300), Slow(), piece=20)
"""


def test_kills_change_no_byte(tmp_path):
    command = [sys.executable, "-c", WORK, str(tmp_path/"killed")]
    count = 0
    for moment in (.15, .4):
        work = subprocess.Popen(command)
        while not (tmp_path/"killed"/"journal.jsonl").exists() and work.poll() is None: time.sleep(.01)
        time.sleep(moment)
        work.send_signal(signal.SIGKILL)
        count += work.wait() == -signal.SIGKILL
        if not (tmp_path/"killed"/"manifest.json").exists():
            with pytest.raises(ArtefactError, match="not finished"): EmbeddingStore(tmp_path/"killed")
    for name in ("killed", "calm"): embed(tmp_path/name, numbers(300), Slow(), piece=20)
    assert count and contents(tmp_path/"killed") == contents(tmp_path/"calm")
    assert len(EmbeddingStore(tmp_path/"calm")) == 267


@pytest.mark.parametrize("moment", range(12))
def test_any_write_may_be_the_last(tmp_path, monkeypatch, moment):
    """The work is stopped before its first, second, ... change on disk, while new and while growing, and given again."""
    def stop_at(number):
        left = [number]
        def wrap(call):
            def wrapped(*args, **kwargs):
                left[0] -= 1
                if left[0] < 0: raise KeyboardInterrupt
                return call(*args, **kwargs)
            return wrapped
        for module, name in ((os, "fsync"), (os, "replace"), (os, "pwrite")): monkeypatch.setattr(module, name, wrap(getattr(module, name)))
    for count in (11, 19):
        stop_at(moment*3)
        try: embed(tmp_path/"stopped", numbers(count))
        except KeyboardInterrupt: pass
        monkeypatch.undo()
        stopped = embed(tmp_path/"stopped", numbers(count))
        assert stopped.ids == numbers(count)
        stopped.verify()
    embed(tmp_path/"calm", numbers(11))
    assert contents(embed(tmp_path/"calm", numbers(19)).folder) == contents(tmp_path/"stopped")


def test_listings_lie_amid_their_photos():
    random = np.random.default_rng(0)
    vectors, owners = random.normal(size=(150_000, 2)), random.integers(-1, 90, 150_000)
    means = mean_by_listing(vectors, owners, 100)
    for listing in range(90): np.testing.assert_allclose(means[listing], vectors[owners == listing].mean(0), atol=1e-12)
    assert np.isnan(means[90:]).all()


def test_listings_are_replaced_when_photos_join(store, tmp_path):
    images = pd.DataFrame(dict(id=numbers(30), product_id=[name[-1] for name in numbers(30)]))
    first = embeddings.pool_store(store, images, tmp_path/"listings")["1"]
    grown = embed(store.folder, numbers(30))
    second = embeddings.pool_store(grown, images, tmp_path/"listings")
    assert len(second) == 10 and (second["1"] != first).any()
    np.testing.assert_allclose(second["1"], unit_rows(grown[["1", "11", "21"]].mean(0, keepdims=True))[0], atol=1e-6)


MEMORY = """
import resource, sys
sys.path.insert(0, "tests")
import test_embeddings
test_embeddings.embed(sys.argv[1], test_embeddings.numbers(64), sides=(224,), batch=16, piece=64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
test_embeddings.embed(sys.argv[1], test_embeddings.numbers(700), sides=(224,), batch=16, piece=64)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_photos(tmp_path):
    grown = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True).stdout
    assert int(grown)*1024 < 25e6 # their squares are 105 MB
