"""The store on SQLite and on a real PostgreSQL: the same feed again, changed feeds, hostile cells, and kills at any moment."""
import csv
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import create_engine, func, select, text

from fb_marketplace.cli import main
from fb_marketplace.demo import plan, product_rows, write_catalogue, write_rows
from fb_marketplace.sources import IMAGE_COLUMNS, PRODUCT_COLUMNS, open_source
from fb_marketplace.store import Ingest, Listing, Photo, Quarantine, Thumbnail, check_store, ingest, load_table, open_store, table_hash

COLUMNS = [*PRODUCT_COLUMNS, "create_time"]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path):
    """Address of an empty store of each kind."""
    if request.param == "sqlite": return f"sqlite:///{tmp_path/'store.db'}"
    return new_database(request.getfixturevalue("postgres"))


def new_database(server):
    name = f"store_{uuid.uuid4().hex}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection: connection.execute(text(f"create database {name}"))
    engine.dispose()
    return str(engine.url.set(database=name).render_as_string(hide_password=False))


@pytest.fixture
def store(database):
    engine = open_store(database)
    yield engine
    engine.dispose()


def write_feed(folder, products, images=(), columns=COLUMNS):
    (folder/"images").mkdir(parents=True, exist_ok=True)
    for name, header, rows in (("Products.csv", columns, products), ("Images.csv", IMAGE_COLUMNS, images)):
        with open(folder/name, "w", newline="", encoding="utf-8") as file: csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return open_source(folder)


def listing(name, price="£5", time="1/2/2022", title="Oak table"):
    return (name, title, "Home & Garden / Tables", "Solid oak, seats six", price, "Leeds, West Yorkshire", time)


def counts(feed, table="products"):
    return {name: count for name, count in feed.counts[table].items() if count}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A small demo catalogue with photos, and the same in another order."""
    folder = tmp_path_factory.mktemp("shop")
    write_catalogue(folder/"one", 200, 3)
    (folder/"two").mkdir()
    for name in ("Products.csv", "Images.csv"):
        with open(folder/"one"/name, newline="\n", encoding="utf-8") as file: header, *rows = csv.reader(line.replace("\r", " ") for line in file)
        random.Random(1).shuffle(rows)
        write_rows(folder/"two"/name, [tuple(header), *map(tuple, rows)])
    (folder/"two"/"images.zip").hardlink_to(folder/"one"/"images.zip")
    return folder


def test_the_same_feed_in_any_order_leaves_the_same_tables(shop, store, tmp_path):
    first = ingest(open_source(shop/"one"), store)
    assert counts(first)["new"] == counts(first)["stored"] > 150 and counts(first, "images")["stored"] > 150
    before = table_hash(store)
    again = ingest(open_source(shop/"two"), store)
    assert counts(again)["unchanged"] == counts(again)["stored"] == counts(first)["stored"] and "gone" not in counts(again)
    assert table_hash(store) == before and check_store(store) == []
    other = open_store(tmp_path/"other.db")
    ingest(open_source(shop/"two"), other)
    assert table_hash(other) == before # on another database, in another order
    other.dispose()


def test_a_feed_that_changes_updates_marks_and_brings_back(store, tmp_path):
    ingest(write_feed(tmp_path/"1", [listing("a"), listing("b"), listing("c")]), store)
    second = ingest(write_feed(tmp_path/"2", [listing("a", "£7"), listing("c"), listing("d")]), store)
    assert counts(second) == dict(read=3, stored=3, changed=1, unchanged=1, new=1, gone=1)
    rows = load_table(store, Listing).set_index("id")
    assert rows.price.to_dict() == dict(a=7, b=5, c=5, d=5) and rows.revisions.to_dict() == dict(a=1, b=0, c=0, d=0)
    assert rows.gone.to_dict() == dict(a=False, b=True, c=False, d=False)
    third = ingest(write_feed(tmp_path/"3", [listing("b")]), store, full=False)
    assert counts(third) == dict(read=1, stored=1, returned=1)
    assert not load_table(store, Listing).gone.any()
    history = load_table(store, Ingest)
    assert history.number.tolist() == [1, 2, 3] and (history.finished != "").all() and history.counts[1]["products"]["changed"] == 1


def test_of_rows_with_the_same_id_the_newest_is_kept(store, tmp_path):
    rows = [listing("a", "£1", "3/2/2022"), listing("a", "£2", "4/2/2022"), listing("a", "£3", "28/1/2022"), listing("b"), listing("b"), listing(" b ")]
    for number, order in enumerate((rows, rows[::-1])):
        feed = ingest(write_feed(tmp_path/str(number), order), store)
        assert counts(feed)["stored"] == 2 and counts(feed)["quarantined"] == 4
    assert load_table(store, Listing).set_index("id").price["a"] == 2
    assert load_table(store, Quarantine).rule.tolist() == ["id twice"]*4


def test_a_photo_is_stored_once_and_follows_its_file(store, tmp_path):
    source = write_feed(tmp_path, [listing("a")], [("p", "a"), ("q", "a"), ("lost", "a"), ("r", "nobody")])
    for name in "pqr": Image.effect_noise((300, 320), 60).convert("RGB").save(tmp_path/"images"/f"{name}.jpg")
    feed = ingest(source, store)
    assert counts(feed, "images") == dict(read=4, stored=2, quarantined=2, new=2)
    assert load_table(store, Listing).image_num[0] == 2 and load_table(store, Listing).image_path[0] == "p.jpg"
    Image.effect_noise((300, 200), 60).convert("RGB").save(tmp_path/"images"/"q.jpg")
    again = ingest(open_source(tmp_path), store)
    assert counts(again, "images") == dict(read=4, stored=2, quarantined=2, unchanged=1, changed=1)
    assert load_table(store, Photo).image_height.tolist() == [320, 200] and len(load_table(store, Thumbnail)) == 2 and check_store(store) == []


def test_extra_columns_are_kept_and_personal_data_is_masked(store, tmp_path):
    rows = [("a", "Lamp", "Home", "Call 07700 900123", "£5", "Leeds", "1/1/2022", "blue, ring 07700 900124"), ("", "Lamp", "Home", "Call 07700 900123", "£5", "Leeds", "", "")]
    ingest(write_feed(tmp_path, rows, columns=[*COLUMNS, "colour"]), store)
    found = load_table(store, Listing).iloc[0]
    assert found.extra == {"colour": "blue, ring [phone]"} and "900" not in str(found.to_dict())
    assert "900" not in load_table(store, Quarantine).raw[0]


HOSTILE = st.one_of(
    st.text(max_size=40), st.text(st.characters(max_codepoint=0x20), max_size=8), st.sampled_from(["", "N/A", '"', '""', "'; drop table listings; --", "\x00", "a\x00b", "\r\n", "\r", "\u2028",
        "%s %(id)s :id {0}", "£1e999", "-£5", "£9" + "9"*400, "nan", "inf", "1e-400", "31/02/2022", "99999-99-99", "0000-00-00", "1"*30, "-9"*9, "🛋"*50, "é"*1000, "\ufeff", "\u202e", "<b", "&#0;", "&"*99]))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_no_row_is_ever_lost(kind, request, tmp_path):
    engine = open_store(tmp_path/"fuzz.db" if kind == "sqlite" else new_database(request.getfixturevalue("postgres")))

    @settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(st.lists(st.tuples(*[HOSTILE]*len(COLUMNS)), min_size=1, max_size=8), st.lists(st.tuples(HOSTILE, HOSTILE), max_size=4), st.integers(0, 30))
    def feeds(products, images, long):
        clean = lambda rows: [tuple(cell.encode("utf-8", "replace").decode() for cell in row) for row in rows]
        products = clean(products) + [("long", "x"*10**6 if long == 0 else "x", "", "y\n"*500_000 if long == 1 else "y", "£1", "", "")]*(long < 2)
        feed = ingest(write_feed(tmp_path/"feed", products, clean(images)), engine)
        for name, rows in (("products", products), ("images", images)):
            assert feed.counts[name]["read"] == len(rows) == feed.counts[name]["stored"] + feed.counts[name]["quarantined"]
        with engine.connect() as connection:
            stored, set_aside = (connection.scalar(select(func.count()).select_from(table).where(table.seen == feed.number)) for table in (Listing, Quarantine))
        assert stored + set_aside == len(products) + len(images)

    feeds()
    assert check_store(engine) == []
    engine.dispose()


def test_killed_ingests_end_as_if_undisturbed(database, tmp_path):
    write_rows(tmp_path/"Products.csv", product_rows(plan(2500, 2)))
    write_rows(tmp_path/"Images.csv", [IMAGE_COLUMNS])
    (tmp_path/"images").mkdir()
    calm = open_store(tmp_path/"calm.db")
    begin = time.monotonic()
    ingest(open_source(tmp_path), calm)
    length = time.monotonic() - begin
    command = [Path(sys.executable).parent/"fb-marketplace", "ingest", "--source", tmp_path, "--database", database, "--quiet"]
    for seed in range(3):
        run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(random.Random(seed).uniform(1, 2.5 + length))
        run.send_signal(signal.SIGKILL)
        run.wait()
        store = open_store(database)
        assert check_store(store) == []
        store.dispose()
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    store = open_store(database)
    assert table_hash(store) == table_hash(calm) and check_store(store) == []
    store.dispose(); calm.dispose()


def test_the_command_ingests_and_says_so(shop, tmp_path, capsys):
    assert main(["ingest", "--source", str(shop/"one"), "--database", f"sqlite:///{tmp_path/'shop.db'}", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "202 read" not in said and "201 read" in said and "set aside, price limit" in said and "table hash: " in said
    assert main(["ingest", "--source", str(tmp_path/"nowhere"), "--database", str(tmp_path/"shop.db"), "--quiet"]) == 2
    assert main(["ingest", "--source", str(shop/"one"), "--database", "postgresql://me:secret@localhost/shop", "--quiet"]) == 2
    assert "secret" not in capsys.readouterr().err
