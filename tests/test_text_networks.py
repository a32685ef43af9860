"""Every text network learns, in both stages, and goes on after a real kill."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

VOCABULARY, TOKENS = 122, 24
NAMES = ["word2vec_cnn", "masked_pooling", "wide_cnn", "bigru", "small_transformer"]


def corpus(count, seed):
    """Texts of three categories: half of their words are the category's own."""
    numbers, codes = np.random.default_rng(seed), np.arange(count) % 3
    ids = np.zeros((count, TOKENS), np.int32)
    for row, code in zip(ids, codes):
        size = numbers.integers(3, TOKENS)
        row[:size] = np.where(numbers.random(size) < .5, 2 + 20*code + numbers.integers(20, size=size), 62 + numbers.integers(60, size=size))
    return ids, codes


def vectors_of_words():
    """Those of a category's own words point the same way, roughly."""
    numbers = np.random.default_rng(0)
    vectors = numbers.normal(size=(VOCABULARY, 12))
    vectors[2:62] += np.repeat(numbers.normal(size=(3, 12)), 20, axis=0)
    return vectors.astype(np.float32)


def train(name, folder, **options):
    from fb_marketplace.text_networks import build_text_network, train_text_network
    vectors = vectors_of_words()
    model = build_text_network(name, VOCABULARY, TOKENS, 12, 3, vectors, hidden=32)
    return model, train_text_network(model, corpus(240, 0), corpus(120, 1), folder, 2, 5, 1e-2, 1e-2, 16, quiet=True, **options)


@pytest.mark.parametrize("name", NAMES)
def test_every_network_learns(name, tmp_path):
    from fb_marketplace.text_networks import NETWORKS, network_log_proba
    assert NAMES == list(NETWORKS)
    model, history = train(name, tmp_path)
    ids, codes = corpus(300, 2)
    assert history.stage.tolist() == ["frozen"]*2 + ["whole"]*5
    assert (network_log_proba(model, ids).argmax(1) == codes).mean() > .9


def die_after_the_first_epoch(epoch, figures): os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_training_ends_at_the_same_weights(tmp_path):
    from fb_marketplace.training import weights_digest
    done = subprocess.run([sys.executable, __file__, str(tmp_path/"killed")], env=os.environ | dict(PYTHONPATH=str(Path(__file__).parent.parent)), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list((tmp_path/"killed"/"frozen").glob("epoch-001*")) and not (tmp_path/"killed"/"whole").exists()
    (resumed, parts), (model, history) = train("masked_pooling", tmp_path/"killed"), train("masked_pooling", tmp_path/"whole")
    assert parts.drop(columns="seconds").equals(history.drop(columns="seconds"))
    assert weights_digest(resumed) == weights_digest(model)


if __name__ == "__main__": train("masked_pooling", sys.argv[1], after_epoch=die_after_the_first_epoch)
