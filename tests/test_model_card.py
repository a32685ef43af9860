"""The card holds every figure it is given and says what is missing, and neither it nor the board tells a listing or a place."""
import re

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax

from fb_marketplace import data  # noqa: F401 (gives a Run its tables)
from fb_marketplace.calibration import coverage_by_category, coverage_curve, fit_conformal, per_category
from fb_marketplace.core import ArtefactError, InputError, Run, metrics_frame, write_json
from fb_marketplace.looking import confusion_table, largest_confusions
from fb_marketplace.model_card import (BY_PHOTO, FLATTERED, PAGES, REPORTED, TABLES, UNMEASURED, as_records, bare, card_facts, commit_of, draw_leaderboard, leaders, listed,
    model_card, part_of, public, sense_of, stated, step_records)

NAMES = dict(category=["accuracy", "macro_f1", "log_loss", "calibration_error", "error_by_chance", "coverage", "selective_accuracy", "set_coverage", "set_size", "gain_over_text", "top_3"],
    price=["rmse", "mae", "mdape", "r2", "pinball"], search=["recall_at_10", "accuracy", "coverage"])
SIGHTS = [[], ["tabular"], ["photo"], ["text"], ["text", "photo"]]


def record(model, accuracy=.8, inputs=("text",), split="test", task="category", n=876, **more):
    values = dict(accuracy=accuracy)
    return dict(task=task, model=model, inputs=list(inputs), split=split, n=n, values=values, ci95=dict(accuracy=[accuracy - .02, accuracy + .02]), fit_seconds=1.) | more


def odd_records(seed, count=30):
    """Records of every task, sight and part, with any figures; some without an interval."""
    random, found = np.random.default_rng(seed), []
    for number in range(count):
        task = random.choice(list(NAMES))
        names = random.choice(NAMES[task], 3, replace=False)
        values = {str(name): round(float(random.normal(0, 300 if name in ("rmse", "mae") else .4)), 6) for name in names}
        ci95 = {name: [value - .0123, value + .0456] for name, value in values.items() if random.random() < .8}
        found.append(dict(task=str(task), model=f"model {number}", inputs=SIGHTS[random.integers(len(SIGHTS))], split=str(random.choice(["test", "validation", "5 folds"])), n=int(random.integers(1, 9999)),
            values=values, ci95=ci95, fit_seconds=0.) | (dict(step=str(random.choice(["03_baselines", "05_text"]))) if random.random() < .8 else {}))
    return found


def cells_of(line):
    return re.split(r"(?<!\\)\|", line)[1:-1]


def sections(card):
    """Heading to what stands under it."""
    parts = re.split(r"(?m)^#+ (.*)$", card)
    return dict(zip(parts[1::2], parts[2::2]))


@pytest.fixture(scope="module")
def measured():
    """Tables as the other chapters make them."""
    random = np.random.default_rng(0)
    codes, groups, names = random.integers(4, size=600), np.arange(600), ["Baby | Kids", "Books", "Homes", "Tools"]
    log_proba = log_softmax(2*random.normal(size=(600, 4)) + 2.5*np.eye(4)[codes], axis=1)
    said = log_proba.argmax(1)
    sets = fit_conformal(log_proba[:300], codes[:300]).sets(log_proba[300:])
    slices = pd.DataFrame([("photos", str(count), 100, .7 + count/20, .65 + count/20, .75 + count/20) for count in range(5)], columns=TABLES["slices"])
    return dict(calibration=per_category(log_proba, codes, names), coverage=coverage_curve(log_proba, codes), conformal=coverage_by_category(sets, codes[300:], groups[300:], names),
        confusions=largest_confusions(confusion_table(codes, said, names)).rename(columns={"photos": "n"}), slices=slices, splits=pd.DataFrame(dict(train=[3, 4], test=[1, 2]), pd.Index(names[:2], name="category")),
        selective=pd.DataFrame(dict(model=["fusion"], threshold=[.71], coverage=[.8], accuracy=[.95])), label_noise=pd.DataFrame(dict(value=[.044], low=[.037], high=[.052])), price=pd.DataFrame(dict(category=names, held=[.8, .7, .9, .81])))


@pytest.fixture
def out(tmp_path):
    """A run whose manifests and run.json hold what a card must not tell."""
    first = Run(tmp_path/"secret"/"run", "01_data", 3)
    first.facts = {"source": "a shop", "train listings": 4107, "test listings": 876}
    first.sample("Listings", [{"title": "A lamp that nobody else has", "photos": ["p1"]}])
    first.save_json("features/data_report.json", dict(table_hash="ab"*32))
    first.finish()
    text = Run(first.out, "05_text", 3)
    text.records = [record("/home/anna/minilm frozen", .81), record("SVM", .83)]
    text.save_array("models/text/matrix.npy", np.zeros(250_000))
    text.finish()
    later = Run(first.out, "07_index")
    later.records = [record("later", .99)]
    later.finish()
    step = lambda notebook, **parameters: dict(notebook=notebook, status="done", parameters=dict(out=str(first.out), seed=3) | parameters, seconds=120., finished="2026-11-21T13:38:48+00:00")
    write_json(first.out/"run.json", dict(schema=1, source="a shop", profile="full", seed=3, versions=dict(python="3.11.7"), steps=dict(data=step("01_data", source="postgresql://anna:password@host/shop", weights="/home/anna/weights"),
        text=step("05_text", text_encoder="/home/anna/minilm", folds=5), fusion=dict(notebook="06_fusion", status="running", parameters=dict(votes=2)), index=step("07_index"))))
    return first.out


@pytest.mark.parametrize("seed", range(8))
def test_the_card_holds_every_figure_with_its_interval(seed):
    records = odd_records(seed)
    lines = [[cell.strip() for cell in cells_of(line)] for line in model_card({}, records).splitlines() if line.startswith("|")]
    for made in records:
        own = [line for line in lines if made["model"] in line and f"{made['n']:,}" in line]
        for name, value in made["values"].items(): assert any(stated(name, value, *made["ci95"].get(name, ())) in line for line in own), (made["model"], name)


def test_a_table_of_metrics_will_do(out):
    records = odd_records(1)
    told = model_card({}, metrics_frame(records))
    assert metrics_frame(as_records(metrics_frame(records))).equals(metrics_frame(records))
    for made in records: assert f"| {made['model']} |" in told
    shop = step_records(Run(out, "06_fusion"))
    assert len(draw_leaderboard(metrics_frame(shop)).axes[0].lines) == len(draw_leaderboard(shop).axes[0].lines)


def test_what_is_missing_is_said_to_be(measured):
    whole = sections(model_card({}, [], measured))
    headings = dict(splits="Parts", calibration="By category", selective="Threshold", coverage="Accuracy at a coverage", conformal="By true category", slices="By slice", label_noise="Label noise", price="Range of prices")
    assert set(headings) | {"confusions"} == set(TABLES) == set(measured)
    for name, heading in headings.items():
        less = sections(model_card({}, [], measured | {name: None}))
        assert less[heading].strip() == UNMEASURED != whole[heading].strip(), name
        assert {other for other in whole if whole[other] != less[other]} <= {heading, "Known failures"}
    bare_card = sections(model_card({}, []))
    assert list(bare_card)[1:] == list(whole)[1:] and not [line for line in "".join(bare_card.values()).splitlines() if "nan" in line.split()]
    assert all(bare_card[heading].strip() == UNMEASURED for heading in (*headings.values(), "Category", "Calibration", "Known failures", "Price", "Time, energy, memory"))


def test_failures_follow_from_the_tables(measured):
    told = sections(model_card({}, [], measured))["Known failures"]
    worst = measured["confusions"].iloc[0]
    assert f"{worst.given} is taken for {worst.predicted}: {worst.n} listings" in told
    assert "photos, 0: accuracy .700 [.650, .750] of 100 listings, against .800 over all; more than chance" in told and "photos, 4" not in told
    few = measured["slices"].assign(n=[100, 5, 100, 100, 100])
    assert "photos, 1" in told and "photos, 1:" not in sections(model_card({}, [], dict(slices=few)))["Known failures"]
    assert sections(model_card({}, [], dict(slices=few.assign(accuracy=.8))))["Known failures"].strip().endswith("None beyond chance in the tables of this run.")


def test_names_break_no_table(measured):
    odd = "SVM | words\n<b>bold</b> \\| C:\\nets\\one"
    slices = pd.DataFrame([("price | pounds", "< 10 |", 50, .5, .4, .6), ("price | pounds", "10 or more", 50, .9, .8, 1.)], columns=TABLES["slices"])
    card = model_card(dict(source=odd, counts={odd: 3}, parameters={"05_text": {"name": odd}}, noted={"05_text": {odd: odd}}), [record(odd)], measured | dict(slices=slices))
    widths = [{len(cells_of(line)) for line in table.splitlines()} for table in re.findall(r"(?m)(?:^\|.*\n)+", card)]
    assert widths and all(len(width) == 1 for width in widths)
    assert "<b>" not in card and r"SVM \| words" in card and r"Baby \| Kids" in card and r"| < 10 \| |" in card


def test_the_card_tells_no_listing_and_no_place(out):
    run = Run(out, "06_fusion", 3)
    facts, records = card_facts(run), step_records(run)
    for told in (model_card(facts, records), str(draw_leaderboard(records).axes[0].get_yticklabels()), str(facts)):
        assert not [word for word in ("secret", "anna", "password", "lamp", "p1", str(out)) if word in told]
    card = model_card(facts | dict(command="python run_all.py --source=/home/anna/shop --weights ~/weights/all"), records)
    assert "minilm frozen" in card and "anna" not in card and "--source=shop --weights all" in card


def test_facts_are_those_of_the_steps_so_far(out):
    run = Run(out, "06_fusion", 3)
    run.records, run.facts = [record("fusion", .85, ["text", "photo"])], {"weight of text": .6}
    facts = card_facts(run)
    assert [made["model"] for made in step_records(run)] == ["/home/anna/minilm frozen", "SVM", "fusion"]
    assert facts["command"] == "python run_all.py --source DIR --weights DIR --profile full --seed 3" and facts["versions"] == dict(python="3.11.7")
    assert facts["seconds"] == {"01_data": 120., "05_text": 120.} and facts["seeds"] == {"01_data": 3, "05_text": 3, "06_fusion": 3}
    assert facts["hashes"]["tables"] == "ab"*32 and facts["counts"]["train listings"] == 4107 and facts["noted"] == {"06_fusion": {"weight of text": .6}}
    assert facts["parameters"] == {"01_data": {}, "05_text": dict(text_encoder="minilm", folds=5), "06_fusion": dict(votes=2)} and abs(facts["disk_mb"]["05_text"] - 2) < .01
    told = sections(model_card(facts, step_records(run), watts=50))
    assert "| all of these | 4.0 | 3.3 |" in told["Time, energy, memory"] and "50 W" in told["Time, energy, memory"] and "Memory: not measured" in told["Time, energy, memory"]
    assert "Peak memory: 2,880 MB" in model_card(facts | dict(peak_mb=2880.), [])
    assert "fusion: accuracy .850 [.830, .870], of 876 test listings" in model_card(facts, step_records(run))


def test_a_step_that_runs_by_hand_has_a_card_too(tmp_path):
    run = Run(tmp_path/"run", "06_fusion")
    run.records = [record("fusion", inputs=["text", "photo"])]
    card = model_card(card_facts(run), step_records(run))
    assert "not recorded" in card and ".800 [.780, .820]" in card and UNMEASURED in sections(card)["Time, energy, memory"]


@pytest.mark.parametrize("text, said", [("{", "is not JSON"), ("[]", "not of schema 1"), ('{"schema": 7}', "not of schema 1")])
def test_a_damaged_run_is_told(out, text, said):
    (out/"run.json").write_text(text)
    with pytest.raises(ArtefactError, match=said): card_facts(Run(out, "06_fusion"))


def test_mistakes_are_told(measured):
    for tables, said in ((dict(confusion=measured["confusions"]), "did you mean 'confusions'"), (dict(slices=measured["price"]), "lacks slice, value, n"), (dict(coverage=measured["price"]), "lacks threshold")):
        with pytest.raises(InputError, match=said): model_card({}, [], tables)
    for watts in (0, -5, np.nan, np.inf):
        with pytest.raises(InputError, match="watts"): model_card({}, [], watts=watts)
    for records in ([], [record("price", task="price")], [record("only validated", split="validation")], [record(f"SVM{FLATTERED}photo")]):
        with pytest.raises(InputError, match="no model of the category"): draw_leaderboard(records)
    with pytest.raises(InputError, match="smell"): draw_leaderboard([record("SVM")], REPORTED.assign(sense="smell"))


def test_the_board_has_a_marker_for_each_model_and_hollow_ones_for_the_reported():
    records = [record(f"{step} {sense_of(inputs)} {number}", .3 + number/10 + place/100 + len(inputs)/1000, inputs, step=step)
               for place, step in enumerate(["03_baselines", "04_image", "05_text", "06_fusion"]) for inputs in SIGHTS[1:] for number in range(5)]
    records += [record("SVM; split by photo, leak in", .99, step="03_baselines"), record("tuned", .99, split="validation", step="05_text"), record("encoder, a photo", .99, ["photo"], step="04_image")]
    axis = draw_leaderboard(records, best=2).axes[0]
    marks = {line.get_gid(): [other for other in axis.lines if other.get_gid() == line.get_gid()] for line in axis.lines if line.get_gid()}
    assert len(marks["own"]) == len(leaders(records, 2)) == 4*4*2 and len(marks["reported"]) == len(REPORTED)
    assert all(line.get_markerfacecolor() == "none" for line in marks["reported"]) and all(line.get_markerfacecolor() != "none" for line in marks["own"])
    labels, notes = [label.get_text() for label in axis.get_yticklabels()], [text.get_text() for text in axis.texts]
    edge = labels.index("Other split, as reported")
    assert all(line.get_ydata()[0] > edge for line in marks["reported"]) and all(line.get_ydata()[0] < edge for line in marks["own"])
    assert labels[edge + 1:] and all(label[:2] in PAGES for label in labels[edge + 1:]) and "Hollow: other split" in axis.get_xlabel()
    assert sum(note.startswith(".") and "n = 876" in note for note in notes) == len(marks["own"]) and sum("split" in note for note in notes) == len(REPORTED)
    assert not [label for label in labels if "leak" in label or "tuned" in label or "a photo" in label]
    assert axis.get_title(loc="left").replace("\n", " ").startswith("Best on the test part: text and photos together")


def test_labels_of_the_board_do_not_overlap():
    records = [record(f"{'a very long name of an encoder, '*4}{number}", .7 + number/1000, inputs, step=step) for step in ("04_image", "05_text", "06_fusion") for inputs in SIGHTS for number in range(4)] + [record("costs $5 and $6")]
    figure = draw_leaderboard(records)
    figure.draw_without_rendering()
    axis = figure.axes[0]
    for texts in (axis.get_yticklabels(), axis.texts):
        boxes = sorted([text.get_window_extent() for text in texts], key=lambda box: box.y0)
        assert all(low.y1 <= high.y0 + 1 for low, high in zip(boxes, boxes[1:]))
    assert max(label.get_window_extent().x1 for label in axis.get_yticklabels()) < axis.bbox.x0 < axis.bbox.x1 < min(text.get_window_extent().x0 for text in axis.texts)
    assert axis.bbox.width > .25*figure.bbox.width and min(label.get_window_extent().x0 for label in axis.get_yticklabels()) >= 0


def test_the_same_call_gives_the_same_bytes(out, measured):
    run = Run(out, "06_fusion", 3)
    records, pictures = step_records(run), []
    for _ in range(2):
        run.save_figure("leaderboard", draw_leaderboard(records), "the board")
        pictures.append((out/"figures"/"leaderboard.png").read_bytes())
    assert pictures[0] == pictures[1]
    assert model_card(card_facts(run), records, measured) == model_card(card_facts(run), records, measured)


def test_what_others_report_is_what_the_table_says():
    assert set(REPORTED.system) == {"S0", "S1", "S2", "S3", "S4"} == set(PAGES) and REPORTED.page.str.startswith("https://github.com/").all()
    assert REPORTED.accuracy.between(0, 1).all() and set(REPORTED.split) == {"by photo", "by listing", "not known"}
    assert REPORTED[REPORTED.worth == BY_PHOTO].split.eq("by photo").all()
    assert REPORTED.set_index(["system", "model"]).accuracy[("S1", "EfficientNetV2-B3 + BERT")] == .81


@pytest.mark.parametrize("text, told", [("/home/anna/minilm frozen", "minilm frozen"), ("~/nets/a.keras", "a.keras"), ("D:\\nets\\a b", "a b"), ("file:///srv/x/y", "y"), ("Sports, Leisure & Travel", "Sports, Leisure & Travel"),
    ("Clothes/Shoes", "Clothes/Shoes"), ("https://example.com/a/b", "https://example.com/a/b"), ("and/or/not", "and/or/not"), ("a\n b", "a b"), (" / / ", "/ /")])
def test_of_a_path_only_the_last_part_is_told(text, told):
    assert public(text) == told


def test_small_parts():
    assert [bare(-.0004), bare(12345.678, 1), bare(.5, 0)] == ["-.000", "12,345.7", "0"]
    assert part_of("price", "accuracy") == "others" and part_of("category", "rmse") == "others"
    assert listed(pd.DataFrame(dict(a=[1, 2], b=[pd.NA, True]))).splitlines()[-2:] == ["| 1 |  |", "| 2 | yes |"]
    assert commit_of("/no/such/folder") == ""


def test_the_card_of_a_run_tells_none_of_its_listings(demo):
    run = Run(demo, "08_card")
    listings, records = run.listings(), step_records(run)
    card, axis = model_card(card_facts(run), records), draw_leaderboard(records).axes[0]
    told = [text for column in ("id", "product_name", "product_description", "url") for text in listings[column] if len(text) > 15]
    assert told and not [text for text in told if text in card] and str(demo) not in card and str(demo.parent) not in card
    for made in records:
        for name, value in made["values"].items(): assert stated(name, value, *made["ci95"].get(name, ())) in card, (made["model"], name)
    assert {"fusion"} <= {label.get_text() for label in axis.get_yticklabels()} and len([line for line in axis.lines if line.get_gid() == "own"]) == len(leaders(records))
    assert "| all of these |" in card and "Generated by this package" in card
