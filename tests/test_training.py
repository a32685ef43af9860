"""Trainings that are killed, and what they leave behind."""
import multiprocessing
import os
import random
import signal
import time

import matplotlib.pyplot as plt
import numpy as np
import pytest

from fb_marketplace.core import ArtefactError, InputError, read_json, write_json

EPOCHS, BATCHES = 8, 6


def blobs(seed):
    numbers, codes = np.random.default_rng(seed), np.arange(96) % 3
    return (numbers.normal(size=(96, 2)) + 2*np.array([[0, 1], [1, -1], [-1, -1]])[codes]).astype(np.float32), codes


def make_net(width=8, rate=3e-2):
    import keras
    from fb_marketplace.training import compile_classifier, make_schedule
    keras.utils.set_random_seed(0)
    points = keras.Input((2,))
    x = keras.layers.BatchNormalization()(keras.layers.GaussianNoise(.1)(keras.layers.Dense(width, activation="relu")(points)))
    net = keras.Model(points, keras.layers.Dense(3, dtype="float32")(keras.layers.Dropout(.3)(x)))
    return compile_classifier(net, make_schedule("polynomial", rate, EPOCHS*BATCHES), 1e-3)


def die(): os.kill(os.getpid(), signal.SIGKILL)


def half_a_file(net, epochs):
    """Die when half of the weights of an epoch are on disk."""
    whole = net.save_weights
    def save(path):
        whole(path)
        if len(read_log(path.parent)) == epochs: os.truncate(path, path.stat().st_size//2); die()
    net.save_weights = save


def read_log(folder): return [int(line) for line in (folder/"log.txt").read_text().split()]


def child(folder, moment=None, epoch=0):
    """Train to the end, or to a moment of death; note each epoch when it starts, and the weights when all is done."""
    os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = "1"
    import tensorflow as tf
    from fb_marketplace import training
    tf.config.experimental.enable_op_determinism()
    net = make_net()

    def data(epoch):
        with open(folder/"log.txt", "a") as log: log.write(f"{epoch}\n")
        return tf.data.Dataset.from_tensor_slices(blobs(0)).shuffle(96, seed=epoch).batch(16)

    def write_and_die(path, value):
        if moment == "before the history" and len(value["epochs"]) == epoch: die()
        write_json(path, value)

    if moment == "half of the weights": half_a_file(net, epoch)
    training.write_json = write_and_die
    training.fit(net, data, blobs(1), EPOCHS, folder, patience=8, quiet=True)
    (folder/"weights.txt").write_text(training.weights_digest(net))


@pytest.fixture(scope="module")
def start():
    """Starts children from a server that has imported TensorFlow once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fb_marketplace.training", "tensorflow"])

    def start(*arguments):
        process = context.Process(target=child, args=arguments)
        process.start()
        return process
    return start


def wait_until(folder, epochs, process):
    while process.is_alive() and not ((folder/"log.txt").exists() and len(read_log(folder)) >= epochs): time.sleep(.01)


def figures(folder): return [{name: value for name, value in row.items() if name != "seconds"} for row in read_json(folder/"history.json")["epochs"]]


def test_a_killed_training_ends_where_an_undisturbed_one_does(tmp_path, start):
    whole, killed = tmp_path/"whole", tmp_path/"killed"
    for folder in (whole, killed): folder.mkdir()
    undisturbed = start(whole)
    for moment, epoch in [("half of the weights", 2), ("before the history", 3)]:
        process = start(killed, moment, epoch)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    process = start(killed)
    wait_until(killed, len(read_log(killed)) + 2, process)
    time.sleep(random.random()/10)
    process.kill()
    process.join()
    last = start(killed)
    last.join(); undisturbed.join()
    assert last.exitcode == undisturbed.exitcode == 0
    assert figures(killed) == figures(whole)
    assert (killed/"weights.txt").read_text() == (whole/"weights.txt").read_text()
    trained = read_log(killed)
    assert sorted(set(trained)) == read_log(whole) == list(range(len(figures(whole))))
    assert len(trained) <= len(set(trained)) + 3 # the interrupted ones
    assert [path.name for path in killed.glob("*.h5")] == [path.name for path in whole.glob("*.h5")]
    assert not list(killed.glob(".writing-*"))


def test_another_training_in_the_folder_is_refused(tmp_path):
    from fb_marketplace.training import fit
    fit(make_net(), blobs(0), blobs(1), 1, tmp_path, quiet=True)
    for net, more in [(make_net(width=9), {}), (make_net(rate=1e-2), {}), (make_net(), dict(epochs=2)), (make_net(), dict(seed=1)), (make_net(), dict(settings=dict(data="other")))]:
        with pytest.raises(InputError, match="other settings"): fit(net, blobs(0), blobs(1), **dict(epochs=1, folder=tmp_path, quiet=True) | more)
    assert len(fit(make_net(width=9), blobs(0), blobs(1), 1, tmp_path, anew=True, quiet=True)) == 1


def test_damaged_weights_are_named(tmp_path):
    from fb_marketplace.training import fit
    fit(make_net(), blobs(0), blobs(1), 1, tmp_path, quiet=True)
    weights, = tmp_path.glob("*.h5")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ArtefactError, match="damaged"): fit(make_net(), blobs(0), blobs(1), 1, tmp_path, quiet=True)
    weights.unlink()
    with pytest.raises(ArtefactError, match="is gone"): fit(make_net(), blobs(0), blobs(1), 1, tmp_path, quiet=True)


def test_early_stopping_keeps_the_best_weights(tmp_path):
    from fb_marketplace.training import fit
    net = make_net(rate=.3)
    history = fit(net, blobs(0), blobs(1), EPOCHS, tmp_path, patience=2, quiet=True)
    assert len(history) == history.val_loss.idxmin() + 3 < EPOCHS
    assert net.evaluate(*blobs(1), verbose=0)[0] == pytest.approx(history.val_loss.min(), abs=1e-6)
    assert len(list(tmp_path.glob("*.h5"))) == 1


def test_batch_norm_never_thaws(tmp_path):
    import keras
    from fb_marketplace.training import compile_classifier, fit, freeze
    points = keras.Input((2,))
    base = keras.Model(points, keras.layers.BatchNormalization()(keras.layers.Dense(8)(points)), name="base")
    outer = keras.Input((2,))
    net = keras.Model(outer, keras.layers.Dense(3)(base(outer)))
    for from_layer, trained in [(None, 0), (0, 1), (None, 0)]:
        freeze(base, from_layer)
        dense, norm = [[weight.copy() for weight in layer.get_weights()] for layer in base.layers[1:]]
        fit(compile_classifier(net, 1e-2), blobs(0), blobs(1), 1, tmp_path, quiet=True, anew=True)
        assert all((before == after).all() for before, after in zip(norm, base.layers[2].get_weights()))
        assert (dense[0] != base.layers[1].get_weights()[0]).any() == trained


@pytest.mark.parametrize("kind, falling", [("polynomial", lambda x: 1 - x), ("cosine", lambda x: (1 + np.cos(np.pi*x))/2), ("constant", lambda x: 1 + 0*x)])
def test_schedules_are_their_closed_forms(kind, falling):
    from fb_marketplace.training import make_schedule
    steps = np.arange(1001)
    schedule = make_schedule(kind, 2e-3, 1000, warmup=.25)
    expected = 2e-3*np.where(steps < 250, steps/250, falling(np.maximum(steps - 250, 0)/750))
    assert np.asarray([schedule(step) for step in steps[::10]]) == pytest.approx(expected[::10], abs=1e-8)


def test_half_precision_goes_on_too(tmp_path):
    import keras
    from fb_marketplace.training import fit, prepare_device, weights_digest
    def stop(epoch, row):
        if epoch == 1: raise KeyboardInterrupt
    prepare_device("cpu", "mixed_float16")
    try:
        whole, parts = make_net(), make_net()
        expected = fit(whole, blobs(0), blobs(1), 2, tmp_path/"whole", quiet=True)
        with pytest.raises(KeyboardInterrupt): fit(make_net(), blobs(0), blobs(1), 2, tmp_path/"parts", after_epoch=stop, quiet=True)
        history = fit(parts, blobs(0), blobs(1), 2, tmp_path/"parts", quiet=True)
    finally: prepare_device("cpu")
    assert isinstance(whole.optimizer, keras.optimizers.LossScaleOptimizer)
    assert history.drop(columns="seconds").equals(expected.drop(columns="seconds"))
    assert weights_digest(parts) == weights_digest(whole)
    assert history.learning_rate.nunique() == 2


def test_events_can_be_read_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from fb_marketplace.looking import confusion_table, draw_confusion
    from fb_marketplace.training import FIGURES, TensorBoardLog, fit
    for epochs in (1, 2): # a training, and another that goes on in the same log
        with TensorBoardLog(tmp_path/"log") as log:
            fit(make_net(), blobs(0), blobs(1), epochs, tmp_path/str(epochs), log=log, quiet=True)
            log.figure("confusion", draw_confusion(confusion_table(np.array([0, 1, 1]), np.array([0, 1, 0]), ["a", "b"])), epochs)
    assert not plt.get_fignums()
    events = EventAccumulator(str(tmp_path/"log")).Reload()
    assert {*FIGURES, "learning_rate", "seconds", "confusion"} == set(events.Tags()["tensors"])
    assert [event.step for event in events.Tensors("confusion")] == [1, 2]
    assert events.Tensors("confusion")[0].tensor_proto.string_val[2].startswith(b"\x89PNG")
    assert any("dense" in node.name for node in events.Graph().node)


def test_no_gpu_is_said_in_one_line():
    from fb_marketplace.training import prepare_device, visible_gpus
    if visible_gpus(): pytest.skip("there is a GPU")
    with pytest.raises(InputError, match="nvidia-smi.*choose device cpu"): prepare_device("gpu")
    assert prepare_device("auto") == "cpu"
