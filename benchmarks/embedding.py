"""How fast photos become embeddings, and in how much memory: python benchmarks/embedding.py [--photos ZIP_OR_DIR] [--weights FILE]

Side by side in one process, in turns: `model.predict` on one photo at a time, `embed_photos` (reading and decoding included), and the
network alone on batches that are ready. Then the peak memory of embedding 2,000 and 10,000 photos, each in a process of its own; where
there are fewer photos, they come again under other ids. Without --photos, drawn ones; without --weights, a MobileNetV2 of random numbers.
"""
import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from fb_marketplace.core import quiet_stderr
from fb_marketplace.demo import KINDS, Photo, draw_photo
from fb_marketplace.embeddings import embed_photos, photo_squares
from fb_marketplace.photos import PhotoFiles, PhotoWriter

with quiet_stderr():
    import keras
    import tensorflow as tf


class Again:
    """Photos under as many ids as are wanted."""
    def __init__(self, files): self.files, self.names = files, sorted(files.names)
    def open(self, name): return self.files.open(self.names[int(name) % len(self.names)])


def draw(path, count):
    kinds = sorted(KINDS)
    with PhotoWriter(path, 320) as writer:
        for number in range(count): writer.add(f"{number}.jpg", draw_photo(Photo(str(number), kinds[number % len(kinds)], number, number)))
    return path


def build(weights):
    """The encoder: squares of 0..255 to one row of numbers a photo."""
    side = 224
    if weights.endswith(".keras"):
        base = keras.models.load_model(weights, compile=False, safe_mode=True)
        side = base.input_shape[1] or side
    else: base = keras.applications.MobileNetV2(include_top=False, weights=weights or None, input_shape=(side, side, 3))
    pixels = keras.Input((side, side, 3))
    return keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(base(keras.layers.Rescaling(1/127.5, -1.)(pixels), training=False)), name=base.name)


def numbers(count, start=0): return [str(number) for number in range(start, start + count)]


def one_at_a_time(model, photos, ids):
    """Photos a second with decoding, and without."""
    decoding, begin = 0., time.perf_counter()
    for name in ids:
        before = time.perf_counter()
        square = photo_squares(photos, name, [model.input_shape[1]], "stretch")[0]
        decoding += time.perf_counter() - before
        model.predict(square[None], verbose=0)
    whole = time.perf_counter() - begin
    return len(ids)/whole, len(ids)/(whole - decoding)


def ready(model, photos, ids, batch):
    """Photos a second of the network alone."""
    squares = np.stack([photo_squares(photos, name, [model.input_shape[1]], "stretch")[0] for name in ids[:batch]])
    forward, batches = tf.function(lambda squares: model(squares, training=False)), len(ids)//batch
    squares = tf.constant(squares, tf.float32)
    forward(squares)
    begin = time.perf_counter()
    for _ in range(batches): forward(squares).numpy()
    return batches*batch/(time.perf_counter() - begin)


def embedded(model, photos, ids, batch):
    """Photos a second from the zip to the finished store."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        store = embed_photos(model.predict_on_batch, photos, ids, folder, dict(name=model.name), (model.input_shape[1],), batch=batch, piece=batch*32, progress=False)
        assert len(store) + len(store.bad()) == len(ids)
        return len(ids)/(time.perf_counter() - begin)


def compare(args):
    """Median rates of some rounds, as a table."""
    model, photos = build(args.weights), Again(PhotoFiles(args.photos))
    embedded(model, photos, numbers(2*args.batch), args.batch)
    one_at_a_time(model, photos, numbers(5))
    ids, rates = numbers(args.count), []
    for _ in range(args.rounds):
        rates.append((*one_at_a_time(model, photos, ids[:args.count//4]), embedded(model, photos, ids, args.batch), ready(model, photos, ids, args.batch)))
    single, predict, whole, alone = np.median(rates, axis=0)
    print(f"{model.name}, {model.input_shape[1]} pixels, batches of {args.batch}, {args.count} photos, {args.rounds} rounds\n")
    print("| | photos a second | embed_photos, times that |\n| --- | ---: | ---: |")
    for what, rate in (("model.predict, one photo at a time, decoding included", single), ("model.predict, one photo at a time, decoding not counted", predict),
                       ("embed_photos, decoding included", whole), ("the network on ready batches", alone)):
        print(f"| {what} | {rate:,.1f} | {whole/rate:.2f} |", flush=True)


def measure(args):
    """Peak memory of this process, before and after one embedding, in MB."""
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    model, photos = build(args.weights), Again(PhotoFiles(args.photos))
    embedded(model, photos, numbers(4*args.batch), args.batch)
    before, begin = peak(), time.perf_counter()
    embedded(model, photos, numbers(args.measure), args.batch)
    print(json.dumps(dict(before=before, peak=peak(), seconds=time.perf_counter() - begin)))


def main(args):
    with tempfile.TemporaryDirectory() as folder:
        args.photos = args.photos or str(draw(Path(folder)/"photos.zip", 200))
        compare(args)
        print("\n| photos | peak MB | of it after 4 batches | photos a second |\n| ---: | ---: | ---: | ---: |")
        for size in args.sizes:
            options = itertools.chain(*((f"--{name}", str(getattr(args, name))) for name in ("photos", "weights", "batch")))
            done = subprocess.run([sys.executable, __file__, "--measure", str(size), *options], capture_output=True, text=True)
            if done.returncode: sys.exit(done.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"| {size:,} | {found['peak']:,.0f} | {found['before']:,.0f} | {size/found['seconds']:,.1f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", default="", help="zip or folder; drawn ones when not given")
    parser.add_argument("--weights", default="", help="MobileNetV2's weights (.weights.h5) or a network of its own (.keras), without classifier; random when not given")
    parser.add_argument("--count", type=int, default=512, help="photos a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--sizes", type=int, nargs="*", default=[2_000, 10_000], help="photos to measure the memory of")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    (measure if given.measure else main)(given)
