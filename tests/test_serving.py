"""What a finished run answers: from the command line, and as a page."""
import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gradio_client import Client, handle_file

from fb_marketplace.core import Run
from fb_marketplace.embeddings import EmbeddingStore
from fb_marketplace.joint_embedding import JointEmbedding
from fb_marketplace.photos import PhotoStore
from fb_marketplace.store import Listing, Photo, load_table

PROGRAM = Path(sys.executable).parent/"fb-marketplace"


def call(*arguments):
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def feed(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("feed")
    listings, photos, store = load_table(demo/"marketplace.db", Listing), load_table(demo/"marketplace.db", Photo), PhotoStore(demo/"photos.zip")
    chosen = listings[listings.image_num > 0].head(6)
    own = photos[photos.product_id.isin(chosen["id"])]
    (folder/"photos").mkdir()
    for name in own["id"]: store.open(name).save(folder/"photos"/f"{name}.png")
    bad_photo, only_photo = own["id"].iloc[0], chosen["id"].iloc[5]
    (folder/"photos"/f"{bad_photo}.png").write_bytes(b"not a photo")
    rows = [dict(id=row.id, product_name=row.product_name, product_description=row.product_description) for row in chosen.itertuples()]
    rows[5].update(product_name="", product_description="N/A")
    rows += [dict(id="nothing", product_name="", product_description=""), dict(id="", product_name="Lamp", product_description="Works"),
             dict(id="odd", product_name="\x00'; DROP TABLE listings; --", product_description="🪑"*5000)]
    pd.DataFrame(rows).to_csv(folder/"P.csv", index=False, lineterminator="\n")
    with open(folder/"P.csv", "a") as file: file.write("torn,row,with,five,fields\n")
    own[["id", "product_id"]].to_csv(folder/"I.csv", index=False, lineterminator="\n")
    return folder, bad_photo, only_photo


def test_classify_answers_every_row(demo, feed):
    folder, bad_photo, only_photo = feed
    done = call("classify", "--run", demo, "--products", folder/"P.csv", "--images", folder/"I.csv", "--photos", folder/"photos", "--output", folder/"out.csv")
    assert done.returncode == 0, done.stderr
    answers = pd.read_csv(folder/"out.csv", keep_default_na=False, dtype=str)
    assert list(answers) == ["id", "category", "probability", "sure", "may_be", "price", "price_low", "price_high", "goes_by", "status", "reason"] and len(answers) == 10
    by_id = answers.set_index("id")
    assert by_id.status["nothing"] == by_id.status["torn"] == by_id.status[""] == "rejected"
    assert "neither text nor a photo" in by_id.reason["nothing"] and "fields" in by_id.reason["torn"]
    assert by_id.status[only_photo] == by_id.status["odd"] == "ok"
    assert answers.reason.str.contains(bad_photo).sum() == 1
    good = answers[answers.status == "ok"]
    assert set(good.sure) <= {"yes", "no"} and set(good.goes_by) == {"text", "photo", "text + photo"} and by_id.goes_by[only_photo] == "photo"
    assert all(row.category in row.may_be.split(" | ") for row in good.itertuples())
    prices = good[["price_low", "price", "price_high"]].astype(float)
    assert good.probability.astype(float).between(0, 1).all() and (prices.price_low >= 0).all()
    assert (prices.price_low <= prices.price).all() and (prices.price <= prices.price_high).all()


def test_embed_takes_every_photo_and_goes_on(demo, feed, tmp_path):
    folder, bad_photo, only_photo = feed
    command = "embed", "--run", demo, "--photos", folder/"photos", "--images", folder/"I.csv", "--output", tmp_path/"store", "--batch", 2, "--quiet"
    done = call(*command)
    assert done.returncode == 0 and "1 not (reasons in" in done.stdout and not done.stderr, done.stderr
    store, listings = EmbeddingStore(tmp_path/"store"), EmbeddingStore(tmp_path/"store"/"listings")
    owners = pd.read_csv(folder/"I.csv", dtype=str).set_index("id").product_id
    assert store.bad()["id"].tolist() == [bad_photo] and set(store.ids) == set(owners.index) - {bad_photo}
    own = store[[name for name in store.ids if owners[name] == only_photo]].mean(0)
    np.testing.assert_allclose(listings[only_photo], own/np.linalg.norm(own), atol=1e-5)
    photos, seen = load_table(demo/"marketplace.db", Photo).query("not gone").reset_index(drop=True), JointEmbedding.load(Run(demo, "test"), "models/joint").photo(np.load(demo/"features"/"photo_embedding.npy"))
    for row in np.flatnonzero(photos["id"].isin(store.ids)): assert store[photos["id"][row]] @ seen[row] > .999 # what the run itself made of them
    before = (tmp_path/"store"/"vectors.npy").read_bytes()
    assert call(*command).returncode == 0 and (tmp_path/"store"/"vectors.npy").read_bytes() == before


def test_search_by_text_and_photo(demo, feed):
    folder, bad_photo, only_photo = feed
    listings = load_table(demo/"marketplace.db", Listing)
    wordy = listings.loc[listings.product_name_description_word_count.idxmax()]
    found = json.loads(call("search", "--run", demo, "--text", wordy.product_name_description, "-k", 3, "--json").stdout)
    assert len(found) == 3 and wordy["id"] in [row["id"] for row in found]
    photos = load_table(demo/"marketplace.db", Photo)
    name = photos["id"][photos.product_id == only_photo].iloc[0]
    found = json.loads(call("search", "--run", demo, "--photo", folder/"photos"/f"{name}.png", "-k", 5, "--json").stdout)
    assert only_photo in [row["id"] for row in found]


@pytest.mark.parametrize("arguments, said", [
    (["search", "--run", "nowhere", "--text", "lamp"], "holds no run"),
    (["classify", "--run", "nowhere", "--products", "nowhere.csv", "--output", "x.csv"], "does not exist"),
    (["search", "--run", "nowhere", "--photo", "nowhere.jpg"], "nowhere.jpg"),
])
def test_bad_arguments_are_one_line(arguments, said):
    done = call(*arguments)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments, said", [
    (["classify", "--products", "P.csv", "--output", "photos"], "is a folder"),
    (["classify", "--products", "P.csv", "--output", "P.csv/out.csv"], "cannot be written"),
    (["classify", "--products", "P.csv", "--images", "I.csv", "--output", "out.csv"], "go together"),
    (["classify", "--products", "I.csv", "--output", "out.csv"], "neither a column product_name"),
    (["serve", "--port", "70000"], "1 to 65535"),
    (["embed", "--photos", "photos", "--output", "P.csv"], "cannot be written"),
    (["embed", "--photos", "nowhere", "--output", "store"], "nowhere does not exist"),
    (["embed", "--photos", "photos", "--output", "store", "--batch", "0"], "at least one photo"),
])
def test_what_the_user_can_mend_is_one_line(demo, feed, arguments, said):
    done = subprocess.run([PROGRAM, *arguments, "--run", demo], capture_output=True, text=True, cwd=feed[0])
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_search_for_nothing_is_refused(demo):
    done = call("search", "--run", demo)
    assert done.returncode == 2 and "neither text nor a photo" in done.stderr


def test_a_damaged_run_is_refused(demo, tmp_path):
    import shutil
    shutil.copytree(demo, tmp_path/"run")
    with open(tmp_path/"run"/"models"/"text"/"linear"/"head"/"coef.npy", "ab") as file: file.write(b"!")
    done = call("search", "--run", tmp_path/"run", "--text", "lamp")
    assert done.returncode == 2 and "coef.npy" in done.stderr


@pytest.fixture(scope="module")
def page(demo):
    with socket.socket() as probe: probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
    server = subprocess.Popen([PROGRAM, "serve", "--run", demo, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env={**os.environ, "PYTHONUNBUFFERED": "1"})
    said = next((line for line in server.stdout if "the page is at" in line), "")
    assert str(port) in said
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait(20)


def test_the_page_is_there_and_says_what_it_learned_from(page):
    assert b"generated demo catalogue" in urllib.request.urlopen(page).read()


def test_the_page_classifies_and_searches(page, demo, feed):
    client = Client(page, verbose=False)
    example = sorted(path for path in (feed[0]/"photos").glob("*.png") if path.stem != feed[1])[0]
    label, price = client.predict("", "", handle_file(str(example)), api_name="/classify")
    assert label["label"] and price.count("£") == 3 and "most likely" in price
    gallery = client.predict("", handle_file(str(example)), 4, api_name="/search")
    assert len(gallery) == 4 and all(Path(item["image"]).stat().st_size for item in gallery)
    with pytest.raises(Exception, match="neither text nor a photo"): client.predict("", None, 4, api_name="/search")
