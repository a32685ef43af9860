"""A whole run of the demo catalogue: what it leaves behind, what happens when it is run again, and when it is killed."""
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SMALL, run_all

from fb_marketplace.cleaning import tokens
from fb_marketplace.core import manifests, read_json, sha256_file
from fb_marketplace.demo import write_catalogue
from fb_marketplace.photos import PhotoStore
from fb_marketplace.sources import IMAGE_COLUMNS, PRODUCT_COLUMNS, PhotoFiles, read_table
from fb_marketplace.store import Listing, Part, Photo, Quarantine, load_table
from fb_marketplace.transformers import write_random_checkpoint


def metrics(out):
    return [{key: value for key, value in record.items() if key != "fit_seconds"} for record in read_json(out/"metrics.json")["records"]]


def test_the_run_leaves_what_it_promises(demo):
    for name in ("report.html", "run.json", "metrics.json", "marketplace.db", "photos.zip", "index/listings.faiss"): assert (demo/name).stat().st_size
    assert len(list((demo/"notebooks").glob("*.ipynb"))) == 8
    assert "generated" in (demo/"report.html").read_text().lower()
    assert {step["status"] for step in read_json(demo/"run.json")["steps"].values()} == {"done"}


def test_metrics_have_their_form_and_their_intervals(demo):
    record_file = read_json(demo/"metrics.json")
    assert record_file["schema"] == 1
    for record in record_file["records"]:
        assert set(record) == {"task", "model", "inputs", "split", "n", "values", "ci95", "fit_seconds"}
        assert record["task"] in ("category", "price", "search") and re.fullmatch(r"test|validation|split by \w+", record["split"]) and record["n"] > 0
        for name, (low, high) in record["ci95"].items(): assert low <= high and name in record["values"]


def test_models_beat_their_floor(demo):
    best = lambda task, value: {(*r["inputs"], r["model"]): r["values"][value] for r in metrics(demo) if r["task"] == task and r["split"] == "test" and value in r["values"]}
    accuracy = best("category", "accuracy")
    assert accuracy[("text", "photo", "fusion")] > 3*accuracy[("most frequent",)]
    rmse = best("price", "rmse")
    assert rmse[("text", "category", "kernel ridge, boosted trees")] < rmse[("mean",)]


def test_nothing_is_lost_and_nothing_is_shared(demo):
    listings, photos, rejected, parts = [load_table(demo/"marketplace.db", table) for table in (Listing, Photo, Quarantine, Part)]
    read = [read_table(demo/"source"/name, columns) for name, columns in (("Products.csv", PRODUCT_COLUMNS), ("Images.csv", IMAGE_COLUMNS))]
    assert len(listings) + len(photos) + len(rejected) == sum(len(good) + len(torn) for good, torn in read)
    assert set(parts["id"]) == set(listings["id"])
    parts = parts[parts.split != "unlabelled"]
    assert parts.groupby("group").split.nunique().max() == 1
    assert photos.merge(parts, left_on="product_id", right_on="id").groupby("phash").split.nunique().max() == 1
    assert not listings.product_description.str.contains("Posted by Seller").any() and not listings.product_name.str.contains("Gumtree").any()
    assert not listings.product_name_description.str.contains("07700|@example").any() and listings.product_name_description.str.contains("[phone]", regex=False).any()
    assert listings.lat.notna().mean() > .8
    assert {"no text", "price limit", "id twice"} <= set(rejected.rule) and {"no image", "damaged", "no file", "no listing", "shape"} <= set(rejected.rule)


def test_a_second_run_skips_every_step(demo):
    before, start = {path: sha256_file(path) for path in demo.rglob("*.npy")}, time.monotonic()
    done = run_all("--out", demo, *SMALL)
    assert done.returncode == 0 and done.stdout.count("skipped") >= 8
    judged = [record["values"] for record in manifests(demo)["03_baselines"]["records"] if record["split"] == "test"]
    best = max(values.get("accuracy", 0) for values in judged), min(values.get("rmse", 1e9) for values in judged)
    assert re.search(rf"^baselines +skipped .* category accuracy {best[0]:.3g}, price rmse {best[1]:.3g}$", done.stdout, re.M), done.stdout
    assert before == {path: sha256_file(path) for path in demo.rglob("*.npy")}
    assert time.monotonic() - start < 60


def test_force_gives_the_same_metrics(demo, tmp_path):
    shutil.copytree(demo, tmp_path/"again")
    done = run_all("--out", tmp_path/"again", "--force", "--from", "fusion", *SMALL)
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout + done.stderr
    assert metrics(tmp_path/"again") == metrics(demo) and artefacts(tmp_path/"again") == artefacts(demo)


def artefacts(out):
    """Hashes of all artefacts; Keras writes the date into its files, and what photos and texts cost is told in minutes."""
    return {name: note["sha256"] for manifest in manifests(out).values() for name, note in manifest["artefacts"].items() if not name.endswith((".keras", "photo_pareto.png", "text_costs.png", "text_milliseconds.json"))}


def test_killed_runs_end_as_if_undisturbed(demo, tmp_path):
    out, steps = tmp_path/"killed", ["--steps", "data,eda,text"]
    for seed in range(4):
        with open(tmp_path/"log", "w") as log: run = subprocess.Popen([sys.executable, "run_all.py", "--out", out, *SMALL, *steps], cwd=ROOT, stdout=log, stderr=log)
        time.sleep(random.Random(seed).uniform(1.5, 22))
        run.send_signal(signal.SIGKILL)
        run.wait()
    done = run_all("--out", out, *SMALL, *steps)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(artefacts(out)) > 30 and artefacts(out).items() <= artefacts(demo).items() and all(record in metrics(demo) for record in metrics(out))
    assert not list(out.rglob(".writing-*"))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path/"shop"
    write_catalogue(folder, 150, 1)
    return folder


@pytest.mark.parametrize("spoil, said", [
    (lambda folder: (folder/"Products.csv").write_text((folder/"Products.csv").read_text().replace("product_description", "text", 1)), "no column product_description"),
    (lambda folder: (folder/"Products.csv").write_text(""), "nothing at all"),
    (lambda folder: (folder/"Products.csv").write_text(",".join(PRODUCT_COLUMNS) + "\n"), "no rows"),
    (lambda folder: (folder/"images.zip").write_text("no zip"), "not a zip file"),
    (lambda folder: (folder/"Images.csv").unlink(), "does not exist"),
    (lambda folder: (folder/"Products.csv").write_text((folder/"Products.csv").read_text() + '"never closed'), "is not closed"),
], ids=["column", "empty", "no rows", "zip", "missing", "quote"])
def test_a_bad_source_is_one_line_and_nothing_written(source, tmp_path, spoil, said):
    spoil(source)
    done = run_all("--source", source, "--out", tmp_path/"out")
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path/"out").exists()


@pytest.mark.parametrize("options, said", [(["--steps", "dta"], "dta"), (["-p", "no_such_name", "1"], "no_such_name"), (["--profile", "full"], "weights")])
def test_bad_options_are_one_line_and_nothing_written(tmp_path, options, said):
    done = run_all("--out", tmp_path/"out", *options)
    assert done.returncode == 2 and said in done.stderr and not (tmp_path/"out").exists()


def photos_are_told_apart(out):
    """Each witness by itself, where there are photos; in folds those behind frozen backbones, where there are labels too."""
    arrays = {name: np.load(out/"features"/f"{name}.npy") for name in ("photo_witnesses", "photo_folds", "photo_log_proba", "text_witnesses", "text_folds", "fold_of")}
    kinds, (_, listings, categories) = read_json(out/"features"/"photo_kinds.json"), arrays["text_witnesses"].shape
    photos, labelled = ~np.isnan(arrays["photo_log_proba"][:, 0]), arrays["fold_of"] >= 0
    assert kinds[0] in ("logistic regression", "small network") and kinds[1:] == ["mobilenetv3small_tuned", "vote of similar photos"]
    for name, count, told in ("photo_witnesses", 3, photos), ("photo_folds", 2, photos & labelled), ("text_witnesses", 4, photos | True), ("text_folds", 4, labelled):
        assert arrays[name].shape == (count, listings, categories) and arrays[name].dtype == np.float32
        assert (np.isfinite(arrays[name]) == told[:, None]).all(), name
    assert 0 < photos.sum() < listings and set(arrays["fold_of"]) <= {-1, 0, 1}
    assert sorted(record["model"] for record in metrics(out) if record["split"] == "2 folds" and record["inputs"] == ["photo"]) == sorted(f"mobilenetv3small, {name}" for name in (kinds[0], kinds[2], "all together"))


def all_listings_are_learned_from(out):
    """With `refit`, those who serve know validation and test listings too; the small reader of texts does not."""
    parts, photos = load_table(out/"marketplace.db", Part), load_table(out/"marketplace.db", Photo)
    labelled, array = parts[parts.split != "unlabelled"], lambda name: np.load(out/"models"/name)
    assert set(labelled.split) == {"train", "validation", "test"}
    assert len(array("text/sentences/voters.npy")) == len(array("text/sentences/voter_codes.npy")) == len(labelled)
    assert len(array("image/voters.npy")) == len(array("image/voter_codes.npy")) == photos.product_id.isin(labelled.id).sum()
    assert array("text/linear/head/coef.npy").shape[1] > array("text/student/head/coef.npy").shape[1]
    assert len(np.load(out/"features"/"photo_embedding.npy")) == len(photos)


def test_a_small_plain_source_runs_to_the_end_with_frozen_and_tuned_encoders(source, tmp_path, weights):
    products, images = pd.read_csv(source/"Products.csv", lineterminator="\n", dtype=str, keep_default_na=False), pd.read_csv(source/"Images.csv", dtype=str)
    products["group"], products["split"] = "theirs", "theirs" # extra columns with our names
    roots = products.category.str.split(" / ").str[0]
    few = products[roots.isin(roots.value_counts().index[:3])]
    few.to_csv(source/"Products.csv", index=False, lineterminator="\r\n")
    images.drop_duplicates("product_id").to_csv(source/"Images.csv", index=False)
    out, checkpoint = tmp_path/"out", write_random_checkpoint(tmp_path/"checkpoint", sorted({word for text in few.product_name for word in tokens(text)}))
    done = run_all("--source", source, "--out", out, "--weights", weights, *(word for pair in dict(min_listings=5, encoders="mobilenetv3small", tuned="mobilenetv3small", network="",
        tuned_epochs=1, tuned_views=1, search_trials=1, text_encoder=checkpoint, text_tokens=32, tuned_text_epochs=1, cross_validation=2, refit=True, student_views=1, text_networks="masked_pooling", joint_epochs=1, fusion_networks="",
        text_frozen_epochs=1, text_epochs=1, word_epochs=2, folds=2).items() for word in ("-p", *map(str, pair))))
    assert done.returncode == 0, done.stdout + done.stderr
    photo = read_json(out/"models"/"image"/"encoders.json")
    assert photo["encoders"] == ["mobilenetv3small", "mobilenetv3small_tuned"] and [head["channels"] for head in photo["heads"]] == [[0, 576], [576, 1152]]
    assert read_json(out/"models"/"text"/"readers.json") == ["linear", "sentences", "tuned", "network"]
    assert {"validation", "test", "2 folds"} <= {record["split"] for record in metrics(out)}
    photos_are_told_apart(out)
    all_listings_are_learned_from(out)
    assert not (out/"features"/"text_work").exists() and list((out/"logs"/"text").rglob("events.*"))
    assert not (out/"features"/"work").exists() and list((out/"logs"/"image").rglob("events.*"))
    assert set(load_table(out/"marketplace.db", Part).split) <= {"train", "validation", "test", "unlabelled"}
    assert "Generated demo catalogue" not in (out/"report.html").read_text()


def test_planted_copies_share_a_group(demo):
    listings = load_table(demo/"marketplace.db", Listing).merge(load_table(demo/"marketplace.db", Part), on="id")
    text = listings.product_name_description.str.lower().str.findall(r"\w+").str.join(" ")
    same = listings[(listings.product_name_description_word_count >= 8) & text.duplicated(keep=False)].groupby(text).group.nunique()
    assert len(same) > 0 and (same == 1).all()
    assert (listings.group.value_counts() > 1).sum() >= 10


def test_photos_in_a_folder_give_what_photos_in_a_zip_give(source, tmp_path):
    assert run_all("--source", source, "--out", tmp_path/"zipped", "--steps", "data").returncode == 0
    files = PhotoFiles(source/"images.zip")
    (source/"images").mkdir()
    for name in files.names: (source/"images"/f"{name}.jpg").write_bytes(files.read(name))
    (source/"images.zip").unlink()
    assert run_all("--source", source, "--out", tmp_path/"folder", "--steps", "data").returncode == 0
    zipped, folder = [load_table(tmp_path/name/"marketplace.db", Photo) for name in ("zipped", "folder")]
    pd.testing.assert_frame_equal(zipped, folder)
    assert (tmp_path/"zipped"/"photos.zip").read_bytes() == (tmp_path/"folder"/"photos.zip").read_bytes()
    assert PhotoStore(tmp_path/"folder"/"photos.zip").open(folder["id"][0]).mode == "RGB"
