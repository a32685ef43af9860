"""What computing features once saves, and how much memory training takes: python benchmarks/image_training.py [--run OUT] [--weights DIR]

A classifier on a frozen backbone is trained twice in one process: once as it is often done, where each epoch decodes and encodes every
photo, and once on features that were computed beforehand (their computation is counted). Same photos, same classifier, same epochs.
Then the peak memory of training a whole small network on 2,000 and on 10,000 photos, each in a process of its own; where there are fewer
photos, they come again. Without --run, a demo catalogue is made; without --weights, the backbone is one of random numbers.
"""
import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from fb_marketplace.backbones import ENCODERS, build_base, with_pooling
from fb_marketplace.core import Run, quiet_stderr
from fb_marketplace.data import category_codes
from fb_marketplace.duplicates import photo_owners
from fb_marketplace.image import Lessons, encode, train_network
from fb_marketplace.photo_input import EpochOrder, PhotoSquares, cached_squares, photo_dataset
from fb_marketplace.training import compile_classifier, fit, make_schedule

with quiet_stderr():
    import keras

ROOT = Path(__file__).resolve().parent.parent


def photos_of(out):
    """Photos of a run, their ids, categories and parts."""
    run = Run(out, "benchmark")
    listings, photos, categories = run.listings(), run.photos(), run.load_json("features/categories.json")
    owners = photo_owners(listings, photos)
    return run.photo_store(), photos["id"].tolist(), category_codes(listings, categories)[owners], listings.split.to_numpy()[owners], len(categories)


def with_classifier(given, features, categories, steps):
    """A dense layer behind dropout, compiled; the same start in both ways."""
    keras.utils.set_random_seed(0)
    scores = keras.layers.Dense(categories, name="logits")(keras.layers.Dropout(.3, seed=0)(features))
    return compile_classifier(keras.Model(given, scores), make_schedule("polynomial", 3e-3, steps), 1e-3)


def every_epoch(base, photos, ids, codes, parts, categories, epochs, folder):
    model = with_classifier(base.input, base.output, categories, epochs*-(-(parts == "train").sum()//32))
    squares, order = PhotoSquares(photos, ids, base.input_shape[1]), EpochOrder(0)
    train, validation = (np.flatnonzero(parts == part) for part in ("train", "validation"))
    data = photo_dataset(squares, codes[train], train, order)
    return fit(model, lambda epoch: (order.start(epoch), data)[1], photo_dataset(squares, codes[validation], validation), epochs, folder, patience=epochs, quiet=True)


def once(base, photos, ids, codes, parts, categories, epochs, folder):
    features = keras.Input((base.output_shape[1],))
    model = with_classifier(features, features, categories, epochs*-(-(parts == "train").sum()//32))
    found = encode(base, photos, ids)
    train, validation = ((found[parts == part], codes[parts == part]) for part in ("train", "validation"))
    return fit(model, train, validation, epochs, folder, patience=epochs, quiet=True)


def compare(args):
    photos, ids, codes, parts, categories = photos_of(args.run)
    kept = np.flatnonzero(np.isin(parts, ("train", "validation")))
    kept = np.sort(np.random.default_rng(0).permutation(kept)[:args.count])
    ids, codes, parts = [ids[row] for row in kept], codes[kept], parts[kept]
    encoder = ENCODERS[args.encoder]
    base = with_pooling(encoder, build_base(encoder, args.weights or None))
    encode(base, photos, ids[:64])
    print(f"{encoder.name}, {encoder.side} pixels, {'pretrained' if args.weights else 'random numbers'}, {len(ids):,} photos, {args.epochs} epochs\n")
    print("| | seconds | of the first | best validation accuracy a photo | n |\n| --- | ---: | ---: | ---: | ---: |")
    first = None
    for name, way in (("decode and encode in every epoch", every_epoch), ("features computed once", once)):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            history = way(base, photos, ids, codes, parts, categories, args.epochs, folder)
            seconds = time.perf_counter() - begin
        first = first or seconds
        print(f"| {name} | {seconds:,.1f} | {seconds/first:.3f} | {history.val_accuracy[history.val_loss.idxmin()]:.3f} | {(parts == 'validation').sum()} |", flush=True)


def measure(args):
    """Peak memory of this process, before and after training, in MB."""
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
    photos, ids, codes, _, categories = photos_of(args.run)
    rows = np.arange(args.measure) % len(ids)
    with tempfile.TemporaryDirectory() as folder:
        records = cached_squares(PhotoSquares(photos, [ids[row] for row in rows], args.side), Path(folder)/"squares.npy")
        def train(count, name):
            places = np.arange(count)
            return train_network("simple_cnn", Lessons(records, codes[rows], places[count//10:], places[:count//10], categories), Path(folder)/name, epochs=1, batch=32)
        train(320, "short")
        before, begin = peak(), time.perf_counter()
        train(args.measure, "long")
        print(json.dumps(dict(before=before, peak=peak(), seconds=time.perf_counter() - begin)))


def main(args):
    with tempfile.TemporaryDirectory() as folder:
        if not args.run:
            args.run = str(Path(folder)/"demo")
            subprocess.run([sys.executable, ROOT/"run_all.py", "--out", args.run, "--steps", "data"], check=True, capture_output=True)
        compare(args)
        print(f"\nsimple_cnn, {args.side} pixels, squares on disk\n\n| photos | peak MB | of it after 320 photos | photos a second |\n| ---: | ---: | ---: | ---: |")
        for size in args.sizes:
            done = subprocess.run([sys.executable, __file__, "--run", args.run, "--side", str(args.side), "--measure", str(size)], capture_output=True, text=True)
            if done.returncode: sys.exit(done.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"| {size:,} | {found['peak']:,.0f} | {found['before']:,.0f} | {size/found['seconds']:,.1f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", default="", help="folder of a run; its photos are taken")
    parser.add_argument("--encoder", default="mobilenetv2", choices=ENCODERS)
    parser.add_argument("--weights", default="", help="folder with pretrained weights; random when not given")
    parser.add_argument("--count", type=int, default=1200, help="photos to compare on")
    parser.add_argument("--epochs", type=int, default=12, help="as many as the reference has with a frozen backbone")
    parser.add_argument("--side", type=int, default=96, help="pixels, for the memory")
    parser.add_argument("--sizes", type=int, nargs="*", default=[2_000, 10_000], help="photos to measure the memory of")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    (measure if given.measure else main)(given)
