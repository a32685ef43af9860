"""What the reference's text network costs, beside a linear model: python benchmarks/text_training.py [--run OUT] [--networks NAME ...]

Both learn from the training listings of the same run and are judged on its test listings; seconds are those of everything that learns,
from the first word that is counted to the last weight. The network is trained as the reference trains it: word vectors of 300 numbers (CBOW,
window 2) learned from the training texts in --word-epochs passes (how many the reference made, it does not say; with gensim's own five its
network stays far behind), rows as long as the longest of these, 20 epochs with frozen vectors at 1e-3 and 15 with all at
5e-4, batches of 32, each stage stopped after five epochs without a better validation loss. The linear model is an SVM on TF-IDF of words and
pairs of words. Without --run, a demo catalogue is made. --epochs 1 1 is for trying the program out.
"""
import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from fb_marketplace.baselines import TextFeatures, fit_svm
from fb_marketplace.cleaning import tokens
from fb_marketplace.core import Run
from fb_marketplace.data import category_codes
from fb_marketplace.text_networks import NETWORKS, accuracy_and_seconds, build_text_network, network_log_proba, train_text_network
from fb_marketplace.training import prepare_device
from fb_marketplace.vocabulary import fit_vocabulary, sequence_length
from fb_marketplace.word_vectors import embedding_matrix, train_word_vectors

ROOT = Path(__file__).resolve().parent.parent


def texts_of(out):
    """Texts, category codes and groups of the labelled listings of a run, each by part; number of categories."""
    run = Run(out, "benchmark")
    listings, categories = run.listings(), run.load_json("features/categories.json")
    codes = category_codes(listings, categories)
    part = lambda rows: (listings.product_name_description[rows].reset_index(drop=True), codes[rows], listings["group"].to_numpy()[rows])
    return {name: part(np.flatnonzero(listings.split == name)) for name in ("train", "validation", "test")}, len(categories)


def linear(parts, categories):
    begin = time.perf_counter()
    texts, codes, _ = parts["train"]
    features = TextFeatures(("words",)).fit(texts)
    model = fit_svm(features.transform(texts), codes, categories)
    return time.perf_counter() - begin, model.scores(features.transform(parts["test"][0])).argmax(1)


def network(name, parts, categories, args, folder):
    begin = time.perf_counter()
    texts = parts["train"][0]
    vocabulary, longest = fit_vocabulary(texts, min_count=1), args.max_tokens or sequence_length(texts, 100)
    vectors = embedding_matrix(train_word_vectors([tokens(text) for text in texts], how="cbow", size=300, window=2, min_count=1, epochs=args.word_epochs, seed=args.seed), vocabulary)
    train, validation = ((vocabulary.encode(parts[part][0], longest), parts[part][1]) for part in ("train", "validation"))
    prepared = time.perf_counter() - begin
    model = build_text_network(name, vocabulary.size, longest, 300, categories, vectors, args.seed)
    history = train_text_network(model, train, validation, folder, *args.epochs, 1e-3, 5e-4, 32, 5, args.seed, quiet=True)
    seconds = time.perf_counter() - begin
    print(f"- {name}: {model.count_params():,} parameters, {vocabulary.size:,} words, rows of {longest:,}, {(train[0] == 0).mean():.0%} of them padding; "
          f"{prepared:,.1f} s for words and vectors, {history.groupby('stage').size().to_dict()} epochs, {history.seconds.sum():,.1f} s in them", flush=True)
    return seconds, network_log_proba(model, vocabulary.encode(parts["test"][0], longest)).argmax(1)


def compare(args):
    parts, categories = texts_of(args.run)
    print(", ".join(f"{len(codes):,} {name}" for name, (_, codes, _) in parts.items()), f"listings, {categories} categories, {prepare_device(args.device)}\n")
    ways = {"TF-IDF words, linear SVM": linear(parts, categories)}
    for name in args.networks:
        with tempfile.TemporaryDirectory() as folder: ways[name] = network(name, parts, categories, args, folder)
    floor = ways["TF-IDF words, linear SVM"][0]
    print("\n| | seconds | times the SVM's | test accuracy | 95 % interval | n |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    for row in accuracy_and_seconds(ways, parts["test"][1], parts["test"][2], args.seed).itertuples():
        print(f"| {row.model} | {row.seconds:,.1f} | {row.seconds/floor:,.1f} | {row.accuracy:.3f} | {row.low:.3f} to {row.high:.3f} | {row.n:,} |")


def main(args):
    with tempfile.TemporaryDirectory() as folder:
        if not args.run:
            args.run = str(Path(folder)/"demo")
            subprocess.run([sys.executable, ROOT/"run_all.py", "--out", args.run, "--steps", "data"], check=True, capture_output=True)
        compare(args)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", default="", help="folder of a run with its data step; a demo catalogue when not given")
    parser.add_argument("--networks", nargs="+", default=["word2vec_cnn"], choices=NETWORKS, help="the first is the reference's")
    parser.add_argument("--epochs", type=int, nargs=2, default=[20, 15], metavar=("FROZEN", "WHOLE"), help="of the two stages, at most")
    parser.add_argument("--word-epochs", type=int, default=100, help="passes of the word vectors over the training texts")
    parser.add_argument("--max-tokens", type=int, default=0, help="length of a row; 0 for the longest training text (the reference had 1458)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "gpu"])
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
