"""Words become numbers and vectors, whatever the text, and the same ones in every process."""
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fb_marketplace.cleaning import tokens
from fb_marketplace.vocabulary import PAD, UNKNOWN, fit_vocabulary, misspell, sequence_length

TRAIN = pd.Series(["red oak table", "red table lamp", "كرسي خشب", "table 💡 4k"])
TRAINING = """
import hashlib
from fb_marketplace.word_vectors import WAYS, train_word_vectors
sentences = [f"{colour} {thing} for sale".split() for colour in ("red", "blue", "green") for thing in ("sofa", "lamp", "desk", "bike")]
print(*[hashlib.sha256(repr(vectors.index_to_key).encode() + vectors.vectors.tobytes()).hexdigest() for vectors in (train_word_vectors(sentences, how, 16) for how in WAYS)])
"""


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=4), st.integers(1, 8))
@example(["", "🔥🔥", "SOFA BED!!!", "مرحبا بالعالم", "red "*12_500, "a\x00b", "İstanbul ﬁﬀ", "[phone] red"], 5)
def test_any_text_becomes_a_row(texts, length):
    texts, vocabulary = pd.Series(texts, dtype=object), fit_vocabulary(TRAIN)
    rows = vocabulary.encode(texts, length)
    assert rows.shape == (len(texts), length) and rows.dtype == np.int32
    for text, row, words in zip(texts, rows, vocabulary.decode(rows)):
        known = [word if word in vocabulary else "[unknown]" for word in tokens(text)[:length]]
        assert words == known and (row[len(known):] == PAD).all() and (row[:len(known)] >= UNKNOWN).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 3))
def test_any_text_can_be_misspelt(texts, share, seed):
    texts = pd.Series(texts, dtype=object)
    spoilt = misspell(texts, share, seed)
    assert spoilt.tolist() == misspell(texts, share, seed).tolist() and spoilt.index.equals(texts.index)
    assert sequence_length(texts) >= 1 and misspell(texts, 0, seed).tolist() == texts.tolist()


def test_a_long_text_takes_no_long_time():
    long, start = pd.Series(["sofa "*10_000, "x"*50_000, "ab-"*16_000]), time.perf_counter()
    fit_vocabulary(long).encode(misspell(long, 1, 0), 256)
    assert time.perf_counter() - start < 5


def test_word_vectors_are_the_same_in_every_process():
    done = [subprocess.run([sys.executable, "-c", TRAINING], env=os.environ | dict(PYTHONHASHSEED=seed), capture_output=True, text=True, check=True).stdout for seed in ("1", "2")]
    assert len(done[0].split()) == 3 and done[0] == done[1]
