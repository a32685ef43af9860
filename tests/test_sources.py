"""Where listings live: tables in any shape, databases, photos from hostile zips and from servers that fail."""
import codecs
import csv
import io
import json
import random
import re
import threading
import traceback
import tracemalloc
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, make_url, text

from fb_marketplace import sources
from fb_marketplace.core import InputError, read_json
from fb_marketplace.sources import (PhotoError, PhotoFiles, check_source, fetch_zip, file_batches,
                                    masked, open_source, read_table)

VARIABLES = [*sources.ENVIRONMENT.values(), sources.PHOTO_VARIABLE, "DATABASE_URL", "PGPASSWORD"]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in VARIABLES: monkeypatch.delenv(name, raising=False)


def product(number, **other):
    return dict(id=str(number), product_name=f"Lamp {number}", category="Home / Lamps", product_description="It works.", price="£5.00", location="Leeds, West Yorkshire") | other


def zip_bytes(members, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items(): archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def shop(tmp_path):
    """A small folder source."""
    folder = tmp_path/"shop"
    folder.mkdir()
    pd.DataFrame([product(number) for number in range(1, 8)]).to_csv(folder/"Products.csv", index=False)
    pd.DataFrame(dict(id=["p1", "p2"], product_id=["1", "2"])).to_csv(folder/"Images.csv", index=False)
    (folder/"images.zip").write_bytes(zip_bytes({"images/p1.jpg": b"one", "images/p2.jpg": b"two"}))
    return folder


def whole(source, table="products", size=5000):
    good, torn = zip(*source.batches(table, size))
    return pd.concat(good, ignore_index=True), pd.concat(torn, ignore_index=True)


# tables

ROWS = [["id", "product_name"], ["1", "Café – £5"], ["2", "two"]]


@pytest.mark.parametrize("data", [
    "id,product_name\n1,Café – £5\n2,two\n".encode(),
    codecs.BOM_UTF8 + "id,product_name\r\n1,Café – £5\r\n2,two".encode(),
    codecs.BOM_UTF8 + '"id","product_name"\n"1","Café – £5"\n"2","two"\n'.encode(),
    "id,product_name\n1,Café – £5\n2,two\n".encode("utf-16"),
    codecs.BOM_UTF16_BE + "id\tproduct_name\n1\tCafé – £5\n2\ttwo\n".encode("utf-16-be"),
    "id,product_name\n1,Café – £5\n2,two\n".encode("utf-32"),
    "id;product_name\n1;Café – £5\n\n2;two\n".encode("cp1252"),
    "\0id,product_\0name\n1,Café – £5\n2,\0two\0\n".encode(),
    " id , product_name \n1,Café – £5\n2,two\n".encode(),
], ids=["plain", "BOM", "quotes", "UTF-16", "UTF-16 BE, tabs", "UTF-32", "Windows, semicolons", "NUL", "blanks"])
def test_a_table_reads_the_same_however_it_was_saved(tmp_path, data):
    (tmp_path/"P.csv").write_bytes(data)
    good, torn = read_table(tmp_path/"P.csv", ["id"])
    assert [list(good), *good.to_numpy().tolist()] == ROWS and torn.empty


def test_encodings_are_told_apart_line_by_line(tmp_path):
    (tmp_path/"Products.csv").write_bytes("id,name\n1,Café\n".encode() + "2,Café\n".encode("cp1252") + b"3,\x81\n")
    ((good, _),) = file_batches(tmp_path/"Products.csv", counts=(counts := Counter()))
    assert good.name.tolist() == ["Café", "Café", "\ufffd"] and counts["lines not UTF-8"] == 2


def test_a_cell_may_be_long(tmp_path):
    long = "\n".join(f"line {number}, and so on" for number in range(40_000))
    frame = pd.DataFrame(dict(id=["1", "2", "3"], text=["a", long, "c"]))
    frame.to_csv(tmp_path/"P.csv", index=False)
    pd.testing.assert_frame_equal(read_table(tmp_path/"P.csv", ["id"])[0], frame.astype(str))


def test_long_rows_make_small_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH_LIMIT", 1000)
    pd.DataFrame(dict(id=["1", "2", "3"], text=["a"*900, "b"*900, "c"*900])).to_csv(tmp_path/"P.csv", index=False)
    assert [len(good) for good, _ in file_batches(tmp_path/"P.csv")] == [2, 1]


def test_torn_rows_are_kept_with_what_they_held(tmp_path):
    (tmp_path/"Products.csv").write_text('name,id\none,1\ntwo,2,too many\nthree\n"four" 4\n"open, 5\nsix,"6"\nseven,7\n')
    good, torn = read_table(tmp_path/"Products.csv", ["id"])
    assert good["id"].tolist() == ["1", "7"]
    assert torn["id"].tolist() == ["2", "", "", ""] and set(torn.table) == {"products"} and set(torn.rule) == {"row shape"}
    assert list(map(json.loads, torn.raw)) == [["two", "2", "too many"], ["three"], ["four 4"], ['"open, 5\nsix,"6"\n']]


@pytest.mark.parametrize("data, said", [
    ('id,name\n1,one\n2,"open\n3,three\n', "row that begins at line 3"),
    ('id,name\n1,"one\ntwo"\n2,"open', "row that begins at line 4"),
    ('id,name,"open\n1,2,3\n', "row that begins at line 1"),
    ("id,name,id\n1,2,3\n", "more than one column id"),
    ("", "nothing at all"),
])
def test_a_table_that_cannot_be_read_is_one_line(tmp_path, data, said):
    (tmp_path/"P.csv").write_text(data)
    with pytest.raises(InputError, match=said) as error: read_table(tmp_path/"P.csv", ["id"])
    assert "\n" not in str(error.value)


def test_a_quote_that_swallows_the_file_is_found_before_memory_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "ROW_LIMIT", 10_000)
    (tmp_path/"P.csv").write_text('id,name\n1,one\n2,"open\n' + "3,three\n"*100_000)
    with pytest.raises(InputError, match="begins at line 3"): read_table(tmp_path/"P.csv", ["id"])
    (tmp_path/"P.csv").write_text("id,name\n1,one\n2," + "x"*1_000_000)
    with pytest.raises(InputError, match="begins at line 3"): read_table(tmp_path/"P.csv", ["id"])


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff"), max_size=20)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(cells, min_size=3, max_size=3), max_size=8), st.sampled_from(",;\t"), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_what_was_written_is_what_is_read(tmp_path_factory, rows, delimiter, encoding):
    path = tmp_path_factory.getbasetemp()/"written.csv"
    with open(path, "w", encoding=encoding, newline="") as file: csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([["id", "a", "b"], *rows])
    good, torn = read_table(path, ["id"])
    assert torn.empty and good.to_numpy().tolist() == [[re.sub("\r(?!\n)", " ", cell.replace("\0", "")) for cell in row] for row in rows]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([b'"', b",", b"\n", b"\r", b"a", b'""', b"\xe9", b"\0", b";"]), max_size=40).map(b"".join))
def test_any_bytes_are_rows_or_one_line(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp()/"any.csv"
    path.write_bytes(b"id,name\n" + data)
    try: good, torn = read_table(path, ["id"])
    except InputError as error: assert "\n" not in str(error) and "line" in str(error)
    else:
        letters = lambda value: Counter(str(value))["a"]
        assert sum(map(letters, [*good.to_numpy().ravel(), *torn.raw])) == data.count(b"a")


def test_parquet_gives_what_csv_gives(shop, tmp_path):
    frame = pd.DataFrame([product(number, page_id="7") for number in range(1, 8)])
    frame.to_csv(shop/"Products.csv", index=False)
    from_csv, _ = whole(open_source(shop), size=3)
    typed = frame.assign(id=frame["id"].astype("Int64"), page_id=7., category=frame.category.astype("category"), product_name=frame.product_name.str.encode("utf-8"))
    (shop/"Products.csv").unlink()
    typed.to_parquet(shop/"products.parquet", index=False)
    pd.testing.assert_frame_equal(whole(open_source(shop), size=3)[0], from_csv)
    assert [len(good) for good, _ in open_source(shop).batches("products", 3)] == [3, 3, 1]
    frame.to_csv(shop/"Products.csv", index=False)
    with pytest.raises(InputError, match="Products.csv and products.parquet; leave one"): open_source(shop)


def test_parquet_values_become_text(tmp_path):
    dates = pd.to_datetime(["2022-02-26", None])
    pd.DataFrame(dict(id=[1, 2], day=dates.date, time=dates, ratio=[1.5, None], flag=[True, None], tags=[["a"], None])).to_parquet(tmp_path/"P.parquet")
    good, _ = read_table(tmp_path/"P.parquet", ["id"])
    assert good.to_numpy().tolist() == [["1", "2022-02-26", "2022-02-26T00:00:00", "1.5", "True", '["a"]'], ["2", "", "", "", "", ""]]


def test_a_long_table_needs_little_memory(tmp_path):
    path, line = tmp_path/"Products.csv", "Lamp,Home / Lamps,\"" + "It works. "*20 + "\",£5.00,Leeds\n"
    with open(path, "w") as file:
        file.write("id,product_name,category,product_description,price,location\n")
        file.writelines(f"{number},{line}" for number in range(200_000))
    tracemalloc.start()
    rows = sum(len(good) for good, _ in file_batches(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 200_000 and peak < path.stat().st_size/3


# columns

def test_another_marketplace_needs_a_mapping_only(shop, tmp_path):
    theirs = dict(product_name="title", price="cost", product_description="product_name")
    mapping = "products:\n" + "".join(f"  {ours}: {name}\n" for ours, name in theirs.items()) + "images:\n  product_id: listing\n"
    expected, _ = whole(open_source(shop))
    pd.DataFrame([product(number, group="g", split="s", price_text="t", lat="l") for number in range(1, 8)]).rename(columns=theirs).to_csv(shop/"Products.csv", index=False)
    pd.DataFrame(dict(id=["p1"], listing=["1"])).to_csv(shop/"Images.csv", index=False)
    with pytest.raises(InputError, match=r"no column product_description, price .*; map it with --columns; it has: id, title"): check_source(shop)
    (shop/"columns.yaml").write_text(mapping)
    good, _ = whole(open_source(shop))
    pd.testing.assert_frame_equal(good[expected.columns], expected)
    assert good.drop(columns=expected.columns).to_dict("records") == [dict(group="g", split="s", price_text="t", lat="l")]*7
    assert whole(open_source(shop), "images")[0].product_id.tolist() == ["1"]
    (shop/"columns.yaml").rename(tmp_path/"other.yaml")
    pd.testing.assert_frame_equal(whole(open_source(shop, str(tmp_path/"other.yaml")))[0], whole(open_source(shop, mapping))[0])
    with pytest.raises(InputError, match=r"no column 'label' \(for product_name\) that the column mapping names; it has: id, title"): check_source(shop, "product_name: label")


def test_optional_columns_are_empty_when_absent(shop):
    good, _ = whole(open_source(shop), "images")
    assert list(good) == ["id", "product_id", "bucket_link", "image_ref", "create_time"] and good.bucket_link.tolist() == ["", ""]


def test_the_fingerprint_follows_content_and_mapping(shop):
    before = check_source(shop)
    assert check_source(shop) == before != check_source(shop, "url: price")
    (shop/"images.zip").write_bytes(zip_bytes({"p1.jpg": b"other"}))
    assert check_source(shop) != before


# photos

def test_photos_are_found_by_any_spelling(tmp_path):
    (tmp_path/"images.zip").write_bytes(zip_bytes({"a\\b\\one.JPG": b"1", "Cafe\u0301.png": b"2", "deep/er/two.jpg": b"deep", "two.jpg": b"3", "note.txt": b"", "__MACOSX/._two.jpg": b""}))
    with PhotoFiles(tmp_path/"images.zip") as files:
        assert [files.read(name) for name in ("one", "Caf\u00e9", "Cafe\u0301", "two")] == [b"1", b"2", b"2", b"3"]
        assert "Caf\u00e9" in files and "note" not in files and len(files) == 4
    assert files.zip.fp is None


def test_utf8_names_without_their_mark_are_read(tmp_path):
    data = zip_bytes({"Café.jpg": b"1"})
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(signature) + place
        data = data[:at] + b"\0\0" + data[at + 2:]
    (tmp_path/"images.zip").write_bytes(data)
    with PhotoFiles(tmp_path/"images.zip") as files: assert files.read("Café") == b"1"


@pytest.mark.parametrize("spoil, rule", [
    (lambda data: data, None),
    (lambda data: data.replace(b"PK\x03\x04\x14\0\0\0", b"PK\x03\x04\x14\0\1\0").replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\1\0"), "encrypted"),
    (lambda data: data.replace(b"x"*20, b"y"*20), "damaged"),
    (lambda data: data.replace(b"\x14\0\0\0\0\0", b"\x14\0\0\0\x63\0"), "damaged"),
], ids=["whole", "encrypted", "checksum", "method"])
def test_members_that_cannot_be_read(tmp_path, spoil, rule):
    (tmp_path/"images.zip").write_bytes(spoil(zip_bytes({"a.jpg": b"x"*20}, zipfile.ZIP_STORED)))
    with PhotoFiles(tmp_path/"images.zip") as files:
        if rule is None: assert files.read("a") == b"x"*20
        else:
            with pytest.raises(PhotoError) as error: files.read("a")
            assert error.value.rule == rule


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("declared", [None, 10, 2**32 - 2])
def test_bombs_are_not_let_in(tmp_path, monkeypatch, method, declared):
    monkeypatch.setattr(sources, "SIZE_LIMIT", 1_000_000)
    data = bytearray(zip_bytes({"bomb.jpg": bytes(30_000_000)}, method))
    if declared: data[(at := data.rindex(b"PK\x01\x02") + 24):at + 4] = declared.to_bytes(4, "little")
    (tmp_path/"images.zip").write_bytes(data)
    with PhotoFiles(tmp_path/"images.zip") as files:
        tracemalloc.start()
        with pytest.raises(PhotoError): files.read("bomb")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 5_000_000


def test_a_liar_within_the_limit_cannot_grow_beyond_it(tmp_path, monkeypatch):
    """The declared size passes; what comes out is limited by itself."""
    monkeypatch.setattr(sources, "SIZE_LIMIT", 1000)
    (tmp_path/"images.zip").write_bytes(zip_bytes({"a.jpg": bytes(5000)}))
    with PhotoFiles(tmp_path/"images.zip") as files:
        files.names["a"].file_size = 900
        with pytest.raises(PhotoError): files.read("a")
    (tmp_path/"images").mkdir()
    (tmp_path/"images"/"a.jpg").write_bytes(bytes(1001))
    with pytest.raises(PhotoError, match="over the limit"): PhotoFiles(tmp_path/"images").read("a")


def test_a_damaged_zip_is_refused_in_words(tmp_path):
    whole, chance = zip_bytes({"images/a.jpg": b"photo"*100, "b.jpg": b"x"}), random.Random(0)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)): data[chance.randrange(len(data))] = chance.randrange(256)
        (tmp_path/"images.zip").write_bytes(data[:chance.choice([None, chance.randrange(len(data))])])
        try:
            with PhotoFiles(tmp_path/"images.zip") as files:
                for name in files.names:
                    try: files.read(name)
                    except PhotoError: pass
        except InputError as error: assert "is not a zip file" in str(error)


# photos over HTTP

class Server:
    """Serves one file, with the faults that a test asks for."""
    def __init__(self):
        self.content = zip_bytes({f"p{number}.jpg": random.Random(number).randbytes(100_000) for number in range(4)})
        self.etag, self.modified, self.asked = '"1"', None, []
        self.breaks, self.ranges, self.declares, self.statuses, self.redirect, self.length, self.if_range = [], True, 0, [], None, True, True
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.http.server_port}/images.zip?key=secret"

    def handler(server):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.headers.get("Range"))
                if server.redirect and "elsewhere" not in self.path: return self.answer(302, {"Location": server.redirect})
                if server.statuses: return self.answer(server.statuses.pop(0), {})
                content = server.content
                fits = not server.if_range or self.headers.get("If-Range") in (server.etag, server.modified)
                start = int(re.search(r"\d+", self.headers["Range"])[0]) if self.headers.get("Range") and server.ranges and fits else 0
                headers = {"ETag": server.etag, "Last-Modified": server.modified, "Content-Length": len(content) - start + server.declares if server.length else None}
                if start: headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.answer(206 if start else 200, headers, content[start:start + server.breaks.pop(0)] if server.breaks else content[start:])

            def answer(self, status, headers, body=b""):
                self.send_response(status)
                for name, value in headers.items():
                    if value is not None: self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_): pass
        return Handler

    def fetch(self, path, **options): return fetch_zip(self.address, path, **dict(progress=False, pause=.01, attempts=3) | options)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def names(folder): return sorted(path.name for path in folder.iterdir())


def test_a_broken_download_goes_on_where_it_ended(server, tmp_path):
    server.breaks = [150_000, 100_000]
    path = server.fetch(tmp_path/"images.zip")
    assert path.read_bytes() == server.content and names(tmp_path) == ["images.zip", "images.zip.json"]
    assert server.asked == [None, "bytes=131072-", "bytes=196608-"]
    assert server.fetch(path) == path and len(server.asked) == 4
    assert read_json(tmp_path/"images.zip.json") == dict(etag='"1"', modified=None, length=len(server.content))


def test_a_later_process_goes_on(server, tmp_path):
    server.breaks = [150_000]
    with pytest.raises(InputError, match=r"after 1 attempts .*131,072 bytes are kept") as error: server.fetch(tmp_path/"images.zip", attempts=1)
    assert "secret" not in str(error.value) and names(tmp_path) == ["images.zip.part", "images.zip.part.json"]
    assert server.fetch(tmp_path/"images.zip").read_bytes() == server.content and server.asked == [None, "bytes=131072-"]


@pytest.mark.parametrize("faults", [
    dict(etag='"2"'), dict(etag='"2"', if_range=False), dict(ranges=False), dict(etag=None, modified="Sat, 26 Feb 2022 00:00:00 GMT"), dict(etag=None),
], ids=["changed", "changed, If-Range ignored", "Range ignored", "etag gone", "nothing to tell by"])
def test_what_does_not_fit_starts_anew(server, tmp_path, faults):
    server.breaks = [150_000]
    with pytest.raises(InputError): server.fetch(tmp_path/"images.zip", attempts=1)
    server.content = zip_bytes({"p9.jpg": b"other"*100_000}, zipfile.ZIP_STORED)
    for name, value in faults.items(): setattr(server, name, value)
    assert server.fetch(tmp_path/"images.zip").read_bytes() == server.content


def test_a_weak_etag_is_not_resumed_by(server, tmp_path):
    server.etag, server.breaks = 'W/"1"', [150_000]
    assert server.fetch(tmp_path/"images.zip").read_bytes() == server.content and server.asked == [None, None]


def test_a_new_version_is_fetched(server, tmp_path):
    path = server.fetch(tmp_path/"images.zip")
    server.content, server.etag = zip_bytes({"p9.jpg": b"other"}), '"2"'
    assert server.fetch(path).read_bytes() == server.content
    path.write_bytes(b"cut")
    assert server.fetch(path).read_bytes() == server.content


def test_a_server_without_lengths(server, tmp_path):
    server.length = False
    assert server.fetch(tmp_path/"images.zip").read_bytes() == server.content
    with pytest.raises(InputError, match="larger than the limit"): server.fetch(tmp_path/"small.zip", size_limit=200_000)
    assert names(tmp_path) == ["images.zip", "images.zip.json"]


def test_a_server_that_declares_too_much(server, tmp_path):
    server.declares, server.ranges = 1000, False
    with pytest.raises(InputError, match="cannot be fetched after 3 attempts"): server.fetch(tmp_path/"images.zip")
    with pytest.raises(InputError, match="larger than the limit"): server.fetch(tmp_path/"images.zip", size_limit=len(server.content) + 1)
    server.declares = 10**18
    with pytest.raises(InputError, match="has no room"): server.fetch(tmp_path/"images.zip", size_limit=10**19)
    assert not (tmp_path/"images.zip").exists()


@pytest.mark.parametrize("faults, said", [
    (dict(statuses=[404]), "answers 404"), (dict(statuses=[403]), "answers 403"), (dict(statuses=[500]*3), "answers 500"), (dict(content=b"no zip"), "is not a zip file"),
    (dict(redirect="http://example.com/elsewhere"), "only from this machine"), (dict(redirect="ftp://127.0.0.1/elsewhere"), "only from this machine"),
    (dict(redirect="/images.zip"), "again and again"),
])
def test_what_a_server_may_not_do(server, tmp_path, faults, said):
    for name, value in faults.items(): setattr(server, name, value)
    with pytest.raises(InputError, match=said) as error: server.fetch(tmp_path/"images.zip")
    assert "secret" not in str(error.value) and names(tmp_path) == []


def test_faults_that_pass(server, tmp_path):
    server.statuses, server.redirect = [503, 429], "/elsewhere.zip"
    assert server.fetch(tmp_path/"images.zip").read_bytes() == server.content
    (tmp_path/"images.zip").unlink()
    (tmp_path/"images.zip.part").write_bytes(server.content + b"more")
    (tmp_path/"images.zip.json").rename(tmp_path/"images.zip.part.json")
    server.statuses = [416]
    assert server.fetch(tmp_path/"images.zip").read_bytes() == server.content


def test_an_unreachable_server_is_one_line(tmp_path):
    address = "http://127.0.0.1:9/images.zip?key=secret"
    with pytest.raises(InputError, match="ConnectionError") as error: fetch_zip(address, tmp_path/"images.zip", attempts=2, pause=.01)
    assert "secret" not in "".join(traceback.format_exception(error.value))


def test_photos_of_a_folder_may_lie_elsewhere(server, shop, tmp_path):
    (shop/"images.zip").unlink()
    with pytest.raises(InputError, match="neither images.zip"): open_source(shop)
    with pytest.raises(InputError, match="holds a password or a signature") as error: open_source(shop, photos=server.address)
    assert "secret" not in str(error.value)
    source = open_source(shop, photos=server.address.partition("?")[0], cache=tmp_path/"cache")
    source.check()
    before = source.fingerprint()
    assert not (tmp_path/"cache").exists()
    with source.photo_files() as files: assert len(files.read("p3")) == 100_000
    server.etag = '"2"'
    assert source.fingerprint() != before
    server.content = b"no zip"
    with pytest.raises(InputError, match="is not a zip file"): source.check()


# databases

@pytest.fixture
def database(postgres):
    """A database of its own, with two small tables."""
    name = f"shop_{random.randrange(10**9)}"
    with create_engine(postgres, isolation_level="AUTOCOMMIT").connect() as connection: connection.execute(text(f"create database {name}"))
    url = make_url(postgres).set(database=name)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text('create table products (id integer, product_name text, category text, product_description text, price numeric(8, 2), location text, '
                                'create_time date, "Group %(x)s: a" jsonb, posted timestamp, ratio double precision)'))
        connection.execute(text("insert into products select number, 'Lamp ' || number, 'Home', null, 5, 'Leeds', "
                                "'2022-02-26', '{\"a\": 1}', 'infinity', 1.5 from generate_series(1, 12000) number"))
        connection.execute(text("create table images (id text, product_id integer)"))
        connection.execute(text("insert into images values ('p1', 1)"))
    engine.dispose()
    yield url
    with create_engine(postgres, isolation_level="AUTOCOMMIT").connect() as connection: connection.execute(text(f"drop database {name} with (force)"))


def address_of(url): return url.render_as_string(hide_password=False).replace("postgresql+psycopg2", "postgresql")


def execute(url, statement):
    engine = create_engine(url)
    with engine.begin() as connection: connection.execute(text(statement))
    engine.dispose()


def test_tables_of_a_database_are_text_in_batches(database):
    source = open_source(address_of(database))
    batches = [good for good, torn in source.batches("products") if torn.empty]
    assert [len(batch) for batch in batches] == [5000, 5000, 2000]
    assert batches[0].sort_values("id").iloc[0].to_dict() == {
        "id": "1", "product_name": "Lamp 1", "category": "Home", "product_description": "", "price": "5.00", "location": "Leeds", "url": "", "page_id": "", "create_time": "2022-02-26",
        "Group %(x)s: a": '{"a": 1}', "posted": "infinity", "ratio": "1.5"}
    assert source.photo_files() is None
    source.check()


def test_the_fingerprint_of_a_database_follows_rows_not_their_order(database):
    before = check_source(address_of(database))
    execute(database, "create table copy as select * from products order by id desc; drop table products; alter table copy rename to products")
    assert check_source(address_of(database)) == before
    execute(database, "update images set id = 'p2'")
    assert check_source(address_of(database)) != before


@pytest.mark.parametrize("statement, said", [
    ("drop table images", "has no table images; it has: products"),
    ("alter table products rename product_description to description", r"table products of .* has no column product_description \(maybe 'description'\?\)"),
    ("delete from products", "no rows"),
])
def test_a_bad_database_is_one_line(database, statement, said):
    execute(database, statement)
    with pytest.raises(InputError, match=said) as error: check_source(address_of(database))
    assert "\n" not in str(error.value)
    if "description" in statement: check_source(address_of(database), "product_description: description")


def test_a_database_is_only_read(database):
    source = open_source(address_of(database))
    with pytest.raises(InputError, match="read-only transaction"), source.connect() as connection: connection.execute(text("delete from products"))


def test_the_environment_names_a_database(database, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="FB_MKS_AWS_POSTGRESQL_ENDPOINT, FB_MKS_POSTGRESQL_USERNAME, FB_MKS_POSTGRESQL_DB not set, nor DATABASE_URL"): open_source("environment")
    expected = check_source(address_of(database))
    monkeypatch.setenv("DATABASE_URL", address_of(database.set(password="secret")))
    assert check_source("environment") == expected and "secret" not in repr(open_source("environment"))
    monkeypatch.delenv("DATABASE_URL")
    for part, value in dict(host=database.query["host"], username="postgres", password="secret", database=database.database).items():
        monkeypatch.setenv(sources.ENVIRONMENT[part], value)
    assert check_source("environment") == expected and "secret" not in open_source("environment").name
    (tmp_path/"photos.zip").write_bytes(zip_bytes({"p1.jpg": b"one"}))
    monkeypatch.setenv(sources.PHOTO_VARIABLE, str(tmp_path/"photos.zip"))
    with open_source("environment").photo_files() as files: assert files.read("p1") == b"one"


@pytest.mark.parametrize("endpoint, url", [
    ("db.example.com", "db.example.com/"), ("db.example.com:5433", "db.example.com:5433/"), ("[::1]:5433", "[::1]:5433/"), ("/run/postgresql", "?host=%2Frun%2Fpostgresql"),
])
def test_endpoints(monkeypatch, endpoint, url):
    for part, value in dict(host=endpoint, username="me", password="secret", database="shop").items(): monkeypatch.setenv(sources.ENVIRONMENT[part], value)
    shown = str(sources.environment_url())
    assert url in shown and shown.startswith("postgresql+psycopg2://me:***@") and "/shop" in shown


# no password is ever shown

PASSWORDS = ["postgresql://me:secret@127.0.0.1:1/shop", "postgres://me:secret@127.0.0.1/shop", "postgresql://me@127.0.0.1/shop?password=secret",
             "postgresql://me:x@secret@127.0.0.1/shop", "postgresql://me:secret@127.0.0.1:port/shop", "postgresql+psycopg2://:secret@/shop",
             "mysql://me:secret@127.0.0.1/shop", "me:secret@127.0.0.1/shop", "https://me:secret@example.com/shop", "postgresql://me:s/ecret@x/secret@y/shop"]


@pytest.mark.parametrize("address", PASSWORDS)
def test_a_password_as_parameter_is_refused_and_not_repeated(address):
    with pytest.raises(InputError) as error: check_source(address)
    assert "ecret" not in "".join(traceback.format_exception(error.value)) and "ecret" not in masked(address)


@pytest.mark.parametrize("photos", ["https://me:secret@example.com/images.zip", "http://example.com/images.zip?key=secret", "https://[secret"])
def test_a_password_in_the_photos_address_is_refused(shop, photos):
    with pytest.raises(InputError) as error: open_source(shop, photos=photos)
    assert "secret" not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize("address", ["postgresql://me:secret@127.0.0.1:1/shop", "postgresql://me@127.0.0.1:1/shop?password=secret",
                                     "postgresql://me@127.0.0.1:1/shop?password=secret&connect_timeout=secret",
                                     "postgresql://me@127.0.0.1:1/shop?password=secret&password=secret",
                                     "postgresql://me:secret@127.0.0.1:1/shop?nonsense=1", "postgresql://me:x@secret@127.0.0.1/shop",
                                     "mysql://me:secret@127.0.0.1/shop"])
def test_a_password_of_the_environment_is_not_shown(monkeypatch, address):
    monkeypatch.setenv("DATABASE_URL", address)
    with pytest.raises(InputError) as error: check_source("environment")
    assert "secret" not in "".join(traceback.format_exception(error.value)) and "\n" not in str(error.value)
    if "nonsense" not in address and ":1/" in address: assert "database shop at 127.0.0.1 cannot be read" in str(error.value)


def test_a_missing_file_is_not_made(tmp_path):
    with pytest.raises(InputError, match="is not a file"): open_source(f"sqlite:///{tmp_path}/none.db")
    assert names(tmp_path) == []
