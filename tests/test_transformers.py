"""Encoders from outside: a module of TensorFlow Hub's form that is not ours, checkpoints against a forward pass in NumPy, damaged files, and a kill."""
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
from scipy.special import erf, softmax

from fb_marketplace import transformers
from fb_marketplace.core import ENCODER_PACKAGES, InputError
from fb_marketplace.training import compile_classifier, weights_digest
from fb_marketplace.transformers import INPUTS, TextBatches, WordPieces, build_transformer_classifier, export_hub_encoder, fine_tune, load_checkpoint, load_hub_encoder, module_word_pieces, predict_texts, prepare_encoder, sentence_model, write_random_checkpoint

keras, tf = transformers.keras, transformers.tf
WORDS = "red oak sofa blue phone screen good pram baby cot a with in , !".split()
TITLES = pd.Series(["red oak sofa", "blue phone!", "good pram", "a baby cot, with oak in a sofa", ""])
DESCRIPTIONS = pd.Series(["good", "", "with a screen, a cot, a phone, a pram", "unheard", ""])
REFERENCE = json.loads((Path(__file__).parent/"data"/"minilm_reference.json").read_text())


class Matrix(tf.Module):
    def __init__(self, inputs, outputs, seed): self.weight = tf.Variable(np.random.default_rng(seed).normal(0, .3, (inputs, outputs)).astype(np.float32))
    def __call__(self, x): return tf.tensordot(x, self.weight, 1)


class TinyBert(tf.Module):
    """One block of attention in plain TensorFlow; what TensorFlow Hub's BERT takes and gives, nothing of Keras."""
    def __init__(self, size=8):
        self.size = size
        self.words, self.places, self.types = Matrix(len(WORDS) + 5, size, 0), Matrix(128, size, 1), Matrix(2, size, 2)
        self.query, self.key, self.value, self.wide, self.narrow = (Matrix(size, size, seed) for seed in range(3, 8))
        self.pooler = Matrix(size, size, 8)
        self.steady = tf.Variable(2., trainable=False) # a weight that is not to be learned

    def __call__(self, inputs, training):
        ids, mask, types = (inputs[name] for name in INPUTS)
        x = tf.gather(self.words.weight, ids) + self.places.weight[:tf.shape(ids)[1]] + tf.gather(self.types.weight, types)
        if training: x = tf.nn.dropout(x, .5)
        fit = tf.matmul(self.query(x), self.key(x), transpose_b=True)/self.steady - 1e9*(1 - tf.cast(mask, tf.float32))[:, None]
        x = x + tf.matmul(tf.nn.softmax(fit), self.value(x))
        x = x + self.narrow(tf.nn.tanh(self.wide(x)))
        pooled = tf.nn.tanh(self.pooler(x[:, 0]))
        return dict(pooled_output=pooled, sequence_output=x, default=pooled)


def save_module(folder, answer=None, names=INPUTS, **attributes):
    """Write a SavedModel that is called like one of TensorFlow Hub."""
    bert, root = TinyBert(), tf.__internal__.tracking.AutoTrackable()
    answer = answer or bert
    root.bert, root.__call__ = bert, tf.function(lambda inputs, training=False, mask=None: answer(inputs, training), autograph=False)
    for training in (False, True): root.__call__.get_concrete_function({name: tf.TensorSpec([None, None], tf.int32, name) for name in names}, training=training)
    root.variables, root.trainable_variables, root.regularization_losses = list(bert.variables), list(bert.trainable_variables), []
    for name, value in attributes.items(): setattr(root, name, value)
    tf.saved_model.save(root, str(folder))
    return bert


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Folder of a module that is not ours, the network it was made of, and word pieces."""
    folder = tmp_path_factory.mktemp("foreign")
    bert = save_module(folder/"module")
    (folder/"vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    return folder/"module", bert, WordPieces(folder/"vocab.txt")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory): return write_random_checkpoint(tmp_path_factory.mktemp("checkpoint")/"bert", WORDS, hidden=12, blocks=2, heads=3)


@pytest.fixture(scope="module")
def module(checkpoint): return export_hub_encoder(checkpoint, checkpoint.parent/"module")


def weights_of(encoder): return [variable.numpy() for variable in encoder.module_variables]


def test_a_module_that_is_not_ours_answers_as_it_did(foreign):
    folder, bert, cut = foreign
    inputs = cut(TITLES, DESCRIPTIONS).inputs(np.arange(5))
    said, expected = load_hub_encoder(folder)({name: tf.constant(values) for name, values in inputs.items()}), bert({name: tf.constant(values) for name, values in inputs.items()}, False)
    for name in ("pooled_output", "sequence_output"): np.testing.assert_allclose(said[name], expected[name], atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "pooled_output"])
def test_the_gradient_reaches_what_is_read(foreign, pooling):
    folder, bert, cut = foreign
    encoder = load_hub_encoder(folder)
    model, inputs = build_transformer_classifier(encoder, 3, pooling, units=4), cut(TITLES, DESCRIPTIONS).inputs(np.arange(5))
    variables = encoder.trainable_variables
    assert len(variables) == len(bert.trainable_variables) == 9 and len(encoder.non_trainable_variables) == 1
    with tf.GradientTape() as tape: loss = tf.reduce_sum(model(inputs, training=True)**2)
    slopes = tape.gradient(loss, [variable.value for variable in variables])
    unread = [slope is None or not np.any(tf.convert_to_tensor(slope)) for slope in slopes]
    pooler = [np.array_equal(variable, bert.pooler.weight) for variable in variables]
    assert unread == (pooler if pooling == "mean" else [False]*9)


def test_a_step_of_training_changes_every_weight_that_may_learn(foreign):
    folder, _, cut = foreign
    encoder = load_hub_encoder(folder)
    model, before = compile_classifier(build_transformer_classifier(encoder, 3, "pooled_output"), 1e-2, 0.), weights_of(encoder)
    model.train_on_batch(cut(TITLES, DESCRIPTIONS).inputs(np.arange(5)), np.array([0, 1, 2, 0, 1]))
    changed = [(one != two).any() for one, two in zip(before, weights_of(encoder))]
    assert changed == [variable.trainable for variable in encoder.module_variables] and sum(changed) == 9
    np.testing.assert_array_equal(encoder.module.variables[0], encoder.module_variables[0]) # it is the module itself that learned


def test_a_model_with_a_foreign_module_is_kept_in_kerass_form(foreign, tmp_path):
    folder, _, cut = foreign
    model, pieces = compile_classifier(build_transformer_classifier(load_hub_encoder(folder), 3, "pooled_output"), 1e-2, 0.), cut(TITLES, DESCRIPTIONS)
    fresh = predict_texts(model, pieces)
    model.train_on_batch(pieces.inputs(np.arange(5)), np.array([0, 1, 2, 0, 1]))
    model.save(tmp_path/"model.keras")
    np.testing.assert_array_equal(predict_texts(keras.models.load_model(tmp_path/"model.keras"), pieces), predict_texts(model, pieces))
    assert not np.allclose(fresh, predict_texts(model, pieces), atol=1e-3)


def test_dropout_of_a_module_is_at_work_in_training_alone(foreign):
    folder, _, cut = foreign
    inputs = cut(TITLES, DESCRIPTIONS).inputs(np.arange(5))
    for trainable, same in ((True, False), (False, True)):
        encoder = load_hub_encoder(folder, trainable)
        say = lambda training: encoder({name: tf.constant(values) for name, values in inputs.items()}, training=training)["sequence_output"].numpy()
        assert (say(False) == say(False)).all() and (say(True) == say(False)).all() == same


def test_a_module_without_a_vocabulary_wants_one(foreign, tmp_path):
    folder, _, cut = foreign
    encoder = load_hub_encoder(folder)
    with pytest.raises(InputError, match="brings no vocabulary; give the path of its vocab.txt") as refused: module_word_pieces(encoder)
    assert str(folder) in str(refused.value)
    given = module_word_pieces(encoder, cut.vocabulary)(TITLES, DESCRIPTIONS)
    assert [one.tolist() for one in given.words] == [one.tolist() for one in cut(TITLES, DESCRIPTIONS).words]
    with pytest.raises(InputError, match="nowhere.txt is no file"): module_word_pieces(encoder, tmp_path/"nowhere.txt")


def test_a_module_with_its_vocabulary_brings_its_spelling_too(foreign, tmp_path):
    save_module(tmp_path/"module", vocab_file=tf.saved_model.Asset(str(foreign[2].vocabulary)), do_lower_case=tf.Variable(False, trainable=False))
    cut = module_word_pieces(load_hub_encoder(tmp_path/"module"))
    assert cut(pd.Series(["Oak oak"]), pd.Series([""])).words[0].tolist() == [2, 1, 5 + WORDS.index("oak"), 3]


def test_an_address_on_the_hub_is_looked_up_in_the_cache(foreign, tmp_path, monkeypatch):
    folder, bert, cut = foreign
    handle = "https://tfhub.dev/somebody/tiny_bert/1"
    shutil.copytree(folder, tmp_path/hashlib.sha1(handle.encode()).hexdigest())
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("the network was asked"))
    assert prepare_encoder(handle, tmp_path/"encoders") == (handle, handle)
    inputs = cut(TITLES, DESCRIPTIONS).inputs(np.arange(5))
    said = predict_texts(sentence_model(load_hub_encoder(handle)), cut(TITLES, DESCRIPTIONS))
    states, mask = bert({name: tf.constant(values) for name, values in inputs.items()}, False)["sequence_output"].numpy(), inputs["input_mask"][..., None]
    np.testing.assert_allclose(said, (states*mask).sum(1)/mask.sum(1), atol=1e-5)


def test_an_address_that_cannot_be_reached_is_refused(tmp_path, monkeypatch):
    def unreachable(*_, **__): raise URLError("no route to host")
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    with pytest.raises(InputError, match="https://tfhub.dev/somebody/tiny_bert/2 .*cannot be reached.*no route to host"): load_hub_encoder("https://tfhub.dev/somebody/tiny_bert/2")


STRANGERS = {"no sequence_output": (dict(answer=lambda inputs, training: dict(pooled_output=tf.ones([1, 8]))), "gives no sequence_output"),
             "a tensor": (dict(answer=lambda inputs, training: tf.ones([1, 8])), "input_word_ids"),
             "other inputs": (dict(answer=lambda inputs, training: dict(pooled_output=tf.ones([1, 8])), names=("ids", "mask")), "input_word_ids")}


@pytest.mark.parametrize("made, told", STRANGERS.values(), ids=STRANGERS)
def test_a_module_of_another_form_is_refused(tmp_path, made, told):
    save_module(tmp_path/"module", **made)
    with pytest.raises(InputError, match=told) as refused: load_hub_encoder(tmp_path/"module")
    assert str(tmp_path/"module") in str(refused.value)


def test_a_module_that_cannot_be_called_is_refused(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path/"module"))
    with pytest.raises(InputError, match="module is no encoder of TensorFlow Hub"): load_hub_encoder(tmp_path/"module")


@pytest.mark.parametrize("file", ["saved_model.pb", "variables/variables.data-00000-of-00001", "variables/variables.index"])
def test_a_damaged_module_is_refused(foreign, tmp_path, file):
    shutil.copytree(foreign[0], tmp_path/"module")
    os.truncate(tmp_path/"module"/file, (tmp_path/"module"/file).stat().st_size//2)
    with pytest.raises(InputError, match="module is no encoder of TensorFlow Hub"): load_hub_encoder(tmp_path/"module")


def test_long_listings_are_cut_as_others_cut_them(foreign):
    from tokenizers import BertWordPieceTokenizer
    vocabulary, other = foreign[2].vocabulary, BertWordPieceTokenizer(str(foreign[2].vocabulary))
    lengths = [(0, 0), (0, 9), (9, 0), (4, 4), (1, 30), (30, 1), (30, 30), (30, 31), (31, 30), (5, 6), (6, 5), (6, 6)]
    titles, descriptions = (pd.Series([" ".join((WORDS*3)[start:start + length]) for length in column]) for start, column in zip((0, 3), zip(*lengths)))
    for most in (3, 4, 5, 11, 12, 13, 14, 128):
        other.enable_truncation(most)
        expected = [other.encode(title, description or None) for title, description in zip(titles, descriptions)]
        said = WordPieces(vocabulary, max_tokens=most)(titles, descriptions)
        assert [one.tolist() for one in said.words] == [one.ids for one in expected] and [one.tolist() for one in said.types] == [one.type_ids for one in expected]


def test_two_long_parts_take_no_long_time(foreign):
    long, start = pd.Series(["桌子"*25_000]), time.perf_counter() # every letter is a word
    assert len(foreign[2](long, long).words[0]) == 128 and time.perf_counter() - start < 5


def test_a_vocabulary_without_signs_is_refused(tmp_path):
    (tmp_path/"vocab.txt").write_text("oak\ntable\n")
    with pytest.raises(InputError, match="vocab.txt is no vocabulary of BERT"): WordPieces(tmp_path/"vocab.txt")
    with pytest.raises(InputError, match="max_tokens is 2"): WordPieces(tmp_path/"vocab.txt", max_tokens=2)


def numpy_bert(folder, inputs):
    """BERT (Devlin et al. 2019), from the tensors of a checkpoint to the states of all tokens and the pooled one."""
    from safetensors.numpy import load_file
    config, stored = json.loads((folder/"config.json").read_text()), {name: tensor.astype(float) for name, tensor in load_file(folder/"model.safetensors").items()}
    ids, mask, types = (inputs[name] for name in INPUTS)
    count, length, heads = *ids.shape, config["num_attention_heads"]

    def dense(x, name): return x @ stored[f"{name}.weight"].T + stored[f"{name}.bias"]
    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x/np.sqrt((x**2).mean(-1, keepdims=True) + config["layer_norm_eps"])*stored[f"{name}.weight"] + stored[f"{name}.bias"]
    def split(x): return x.reshape(count, length, heads, -1).transpose(0, 2, 1, 3)

    tables = [stored[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")]
    x = norm(tables[0][ids] + tables[1][:length] + tables[2][types], "embeddings.LayerNorm")
    for number in range(config["num_hidden_layers"]):
        block = f"encoder.layer.{number}"
        query, key, value = (split(dense(x, f"{block}.attention.self.{part}")) for part in ("query", "key", "value"))
        shares = softmax(query @ key.transpose(0, 1, 3, 2)/np.sqrt(query.shape[-1]) + np.where(mask, 0, -1e9)[:, None, None], axis=-1)
        seen = (shares @ value).transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(x + dense(seen, f"{block}.attention.output.dense"), f"{block}.attention.output.LayerNorm")
        wide = dense(x, f"{block}.intermediate.dense")
        x = norm(x + dense(wide*(1 + erf(wide/np.sqrt(2)))/2, f"{block}.output.dense"), f"{block}.output.LayerNorm")
    return dict(sequence_output=x, pooled_output=np.tanh(dense(x[:, 0], "pooler.dense")))


def test_a_checkpoint_is_read_as_bert_is_defined(checkpoint, module):
    from safetensors.numpy import load_file, save_file
    stored, numbers = load_file(checkpoint/"model.safetensors"), np.random.default_rng(1)
    for name in stored: # no weight may be one that hides a mistake
        if "LayerNorm" in name: stored[name] = stored[name] + numbers.normal(0, .3, stored[name].shape).astype(np.float32)
    folder = checkpoint.parent/"lively"
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    save_file(stored, folder/"model.safetensors")
    inputs = WordPieces(folder/"vocab.txt")(TITLES, DESCRIPTIONS).inputs(np.arange(5))
    assert (inputs["input_mask"].sum(1) < inputs["input_mask"].shape[1]).any() and inputs["input_type_ids"].any()
    expected, mask = numpy_bert(folder, inputs), inputs["input_mask"].astype(bool)
    given = {name: tf.constant(values) for name, values in inputs.items()}
    for said in (load_checkpoint(folder).predict_on_batch(inputs), load_hub_encoder(export_hub_encoder(folder, folder/"module"))(given)):
        np.testing.assert_allclose(np.asarray(said["sequence_output"])[mask], expected["sequence_output"][mask], atol=1e-5)
        np.testing.assert_allclose(said["pooled_output"], expected["pooled_output"], atol=1e-5)


def test_names_may_begin_with_bert_and_numbers_may_be_short(checkpoint, tmp_path):
    from safetensors.numpy import load_file, save_file
    shutil.copytree(checkpoint, tmp_path/"bert")
    stored = load_file(checkpoint/"model.safetensors")
    save_file({f"bert.{name}": tensor.astype(np.float16) for name, tensor in stored.items()} | {"cls.predictions.bias": np.zeros(3, np.float32)}, tmp_path/"bert"/"model.safetensors")
    for one, two in zip(load_checkpoint(tmp_path/"bert").get_weights(), load_checkpoint(checkpoint).get_weights()): np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)


def spoil(checkpoint, folder, how):
    """A damaged copy of a checkpoint."""
    from safetensors.numpy import load_file, save_file
    shutil.copytree(checkpoint, folder)
    config, path, name = json.loads((folder/"config.json").read_text()), folder/"model.safetensors", "encoder.layer.1.output.dense.weight"
    stored = load_file(path)
    match how:
        case "DistilBERT": config = dict(model_type="distilbert", dim=12, n_layers=2, n_heads=3)
        case "RoBERTa": config |= dict(model_type="roberta", type_vocab_size=1)
        case "relative places": config |= dict(position_embedding_type="relative_key")
        case "a missing tensor": del stored[name]
        case "a turned tensor": stored[name] = stored[name].T.copy()
        case "more blocks": config |= dict(num_hidden_layers=3)
        case "more words": config |= dict(vocab_size=99)
        case "heads that do not divide": config |= dict(num_attention_heads=5)
    save_file(stored, path)
    (folder/"config.json").write_text(json.dumps(config))
    if how == "half a file": os.truncate(path, path.stat().st_size//2)
    if how == "an empty file": os.truncate(path, 0)
    if how == "no file": path.unlink()
    if how == "half a config": os.truncate(folder/"config.json", 20)
    if how == "a list": (folder/"config.json").write_text("[]")
    if how == "no text": (folder/"config.json").write_bytes(b"\xff\xfe\x00")
    return folder


CONFIG, TENSORS = "config.json", "model.safetensors"


@pytest.mark.parametrize("how, file", [("DistilBERT", CONFIG), ("RoBERTa", CONFIG), ("relative places", CONFIG), ("half a config", CONFIG), ("a list", CONFIG), ("no text", CONFIG),
    ("a missing tensor", f"{TENSORS} has no encoder.layer.1.output.dense.weight"), ("a turned tensor", f"{TENSORS}: encoder.layer.1.output.dense.weight"), ("more blocks", f"{TENSORS} has no encoder.layer.2"),
    ("more words", f"{TENSORS}: embeddings.word_embeddings.weight"), ("heads that do not divide", ""), ("half a file", TENSORS), ("an empty file", TENSORS), ("no file", TENSORS)])
def test_a_damaged_checkpoint_is_refused_by_its_name(checkpoint, tmp_path, how, file):
    folder = spoil(checkpoint, tmp_path/"bert", how)
    for load in (load_checkpoint, lambda folder: export_hub_encoder(folder, tmp_path/"module")):
        with pytest.raises(InputError) as refused: load(folder)
        assert str(folder) in str(refused.value) and file in str(refused.value)
    assert not (tmp_path/"module").exists()


def test_a_checkpoint_without_vocabulary_is_refused(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path/"bert")
    (tmp_path/"bert"/"vocab.txt").unlink()
    with pytest.raises(InputError, match="has no vocab.txt"): prepare_encoder(str(tmp_path/"bert"), tmp_path/"encoders")
    assert not list((tmp_path/"encoders").glob("*"))


def test_minilm_says_what_its_makers_said(tmp_path):
    if importlib.util.find_spec(ENCODER_PACKAGES["minilm"]) is None: pytest.skip("all-MiniLM-L6-v2 is not installed; `make encoder` installs it")
    encoder = load_hub_encoder(prepare_encoder("minilm", tmp_path)[0])
    titles = pd.Series(REFERENCE["sentences"])
    pieces = module_word_pieces(encoder)(titles, pd.Series([""]*len(titles)))
    assert [one.tolist() for one in pieces.words] == REFERENCE["word_pieces"] and not np.concatenate(pieces.types).any()
    for batch in (1, 8): # without padding from neighbours, and with it
        vectors = predict_texts(sentence_model(encoder), pieces, batch)
        np.testing.assert_allclose(vectors/np.linalg.norm(vectors, axis=1, keepdims=True), REFERENCE["embeddings"], atol=1e-4)


def market():
    """Titles, descriptions and codes of 24 listings."""
    titles = pd.Series(["red sofa", "blue phone", "good pram", "oak sofa", "phone screen", "baby cot"]*4)
    return titles, pd.Series(["", "in good", "a cot with oak"]*8), np.tile([0, 1, 2], 8)


def tune(module, folder, trainable=True, rate=3e-2, turn=0, **options):
    """Fine-tune a new model; turn gives the listings that are only watched other categories than they have."""
    keras.utils.set_random_seed(0)
    encoder = load_hub_encoder(module, trainable)
    model, (titles, descriptions, codes) = build_transformer_classifier(encoder, 3), market()
    train, watched = np.arange(18), np.arange(18, 24)
    codes[watched] = (codes[watched] + turn) % 3
    return model, fine_tune(model, module_word_pieces(encoder)(titles, descriptions), codes, train, watched, folder, epochs=3, rate=rate, batch=4, quiet=True, **options)


def test_batches_may_have_any_length(module):
    lengths = [8, 8, 24] # Keras by itself would take the first two for all
    batches = TextBatches(transformers.Pieces([np.full(length, 5, np.int32) for length in lengths], [np.zeros(length, np.int32) for length in lengths]), np.arange(3), np.arange(3), 1)
    model = compile_classifier(build_transformer_classifier(load_hub_encoder(module), 3), 1e-2)
    assert 0 < model.evaluate(batches.dataset(), verbose=0)[0] < 100
    assert [given["input_word_ids"].shape[1] for given, _ in batches.dataset()] == lengths and batches.dataset().cardinality() == 3


def test_the_last_weights_are_kept_though_others_were_better(module, tmp_path):
    seen, folder = [], tmp_path/"training"
    def look(epoch, row): seen.append({path.name for path in folder.glob("*.h5")})
    model, history = tune(module, folder, turn=1, after_epoch=look)
    assert history.val_loss.idxmin() < 2 and len(history) == len(seen) == 3 # it went on, though what is watched got worse
    kept, = folder.glob("*.h5")
    assert kept.name in seen[2] - seen[1]
    digest = weights_digest(model)
    model.load_weights(kept)
    again, repeated = tune(module, folder, turn=1)
    assert weights_digest(again) == weights_digest(model) == digest and repeated.equals(history)


def test_a_frozen_encoder_keeps_its_weights(module, tmp_path):
    model, history = tune(module, tmp_path, trainable=False)
    for one, two in zip(weights_of(load_hub_encoder(module)), weights_of(model.get_layer("encoder"))): np.testing.assert_array_equal(one, two)
    assert len(model.trainable_variables) == 2 and history.loss.iloc[-1] < history.loss.iloc[0]


def test_a_killed_fine_tuning_ends_at_the_same_weights(module, tmp_path):
    done = subprocess.run([sys.executable, __file__, str(module), str(tmp_path/"killed"), "1", "3"], env=os.environ | dict(PYTHONPATH=str(Path(__file__).parent.parent)), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr # amid the second epoch
    assert len(json.loads((tmp_path/"killed"/"history.json").read_text())["epochs"]) == 1
    (resumed, parts), (model, history) = tune(module, tmp_path/"killed"), tune(module, tmp_path/"whole")
    assert parts.drop(columns="seconds").equals(history.drop(columns="seconds")) and len(parts) == 3
    assert weights_digest(resumed) == weights_digest(model)


class Deadly(transformers.TextBatches):
    """Batches that kill their process amid an epoch."""
    moment = None
    def __init__(self, pieces, codes, rows, batch=32, seed=None):
        super().__init__(pieces, codes, rows, batch, seed)
        self.epoch = seed and seed[1]

    def __getitem__(self, place):
        if (self.epoch, place) == self.moment: os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(place)


if __name__ == "__main__":
    Deadly.moment, transformers.TextBatches = tuple(map(int, sys.argv[3:])), Deadly
    tune(*sys.argv[1:3])
