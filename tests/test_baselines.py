"""The floor: ranges that hold, folds that keep groups whole, models that refuse what is not theirs, splits that flatter."""
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline

from fb_marketplace.baselines import grouped_folds, linear_parts, text_pipelines
from fb_marketplace.core import ArtefactError, Run
from fb_marketplace.leaderboard import POLICIES, deal, load_pipeline, save_pipeline, with_leaks
from fb_marketplace.prices import PriceModel, fit_price, mask_money


@pytest.fixture(scope="module")
def shop():
    """A thousand listings of four categories, whose prices follow their words and scatter differently."""
    random = np.random.default_rng(0)
    code, size = random.integers(4, size=1000), random.integers(3, size=1000)
    frame = pd.DataFrame(dict(id=[f"l{i}" for i in range(1000)], code=code, group=np.arange(1000)//2, image_num=random.integers(4, size=1000)))
    frame["sub_category"] = [f"kind {c}{s}" for c, s in zip(code, size)]
    frame["product_name"] = [f"{['small', 'plain', 'large'][s]} {['cup', 'lamp', 'desk', 'bike'][c]} {random.integers(40)}" for c, s in zip(code, size)]
    frame["product_description"] = "works well, collect any evening"
    frame["product_name_description"] = frame.product_name + "\n" + frame.product_description
    frame["price"] = (5*4.**code*(1 + size)*np.exp(random.normal(scale=.2 + .2*code))).clip(0, 1000)
    return frame


@pytest.fixture(scope="module")
def fitted(shop):
    return fit_price(shop[:700], 4)


def test_ranges_hold_what_they_promise_in_every_category(shop, fitted):
    rows = shop[700:]
    said = fitted[0].predict(rows.product_name, rows.product_name_description, np.eye(4)[rows.code], rows.sub_category)
    held = (said.low <= rows.price) & (rows.price <= said.high)
    assert .74 <= held.mean() <= .9 and held.groupby(rows.code).mean().min() >= .65
    own = rows.groupby("code").price.quantile(.9) - rows.groupby("code").price.quantile(.1)
    assert ((said.high - said.low)/rows.code.map(own)).median() < 1


def test_a_guess_of_the_category_and_no_words_at_all_still_get_a_price(shop, fitted):
    nothing, even = pd.Series(["", "cup"]), np.full((2, 4), .25)
    said = fitted[0].predict(nothing, nothing, even)
    assert np.isfinite(said).all(axis=None) and (said.low <= said.likely).all() and (said.likely <= said.high).all()


def test_the_price_model_comes_back_and_refuses_a_changed_file(shop, fitted, tmp_path):
    run = Run(tmp_path, "03_baselines")
    fitted[0].save(run)
    run.finish()
    rows = shop[700:720]
    asked = rows.product_name, rows.product_name_description, np.eye(4)[rows.code]
    np.testing.assert_allclose(PriceModel.load(run).predict(*asked), fitted[0].predict(*asked), rtol=1e-3)
    with open(tmp_path/"models"/"price"/"widening.npy", "ab") as file: file.write(b"!")
    with pytest.raises(ArtefactError, match="widening.npy"): PriceModel.load(run)


def test_money_in_the_text_does_not_reach_the_model(shop, fitted):
    plain, told = pd.Series(["large desk amount"]), pd.Series(["large desk £999"])
    known = np.eye(4)[[2]]
    np.testing.assert_allclose(fitted[0].predict(plain, plain, known), fitted[0].predict(told, told, known))
    assert not mask_money(pd.Series(["£1,000 or 20 quid", "asking 45 pounds", "GBP 12.50"])).str.contains(r"\d").any()


def test_no_fold_parts_a_group(shop):
    for learn, judge in grouped_folds(shop.code.to_numpy(), shop.group.to_numpy(), 5):
        assert not set(shop.group.iloc[learn]) & set(shop.group.iloc[judge])


@pytest.mark.parametrize("name", text_pipelines())
def test_text_pipelines_are_the_same_as_plain_data(shop, name):
    pipeline = text_pipelines()[name][0].fit(shop.product_name[:200], shop.code[:200])
    features, model = linear_parts(pipeline, 4)
    assert (model.scores(features.transform(shop.product_name)).argmax(1) == pipeline.predict(shop.product_name)).all()


def test_a_pipeline_of_another_version_or_with_other_bytes_is_refused(tmp_path, monkeypatch):
    pipeline, run = Pipeline([("classify", LogisticRegression())]).fit(np.arange(6)[:, None], [0, 0, 0, 1, 1, 1]), Run(tmp_path, "03_baselines")
    save_pipeline(pipeline, run, "models/toy")
    run.finish()
    assert (load_pipeline(run, "models/toy").predict([[0], [5]]) == [0, 1]).all()
    with monkeypatch.context() as patched:
        patched.setattr("sklearn.__version__", "9.9")
        with pytest.raises(ArtefactError, match="was made with scikit-learn"): load_pipeline(run, "models/toy")
    path = tmp_path/"models"/"toy"/"pipeline.skops"
    path.write_bytes(path.read_bytes() + b"!")
    with pytest.raises(ArtefactError, match="not the file"): load_pipeline(run, "models/toy")


def test_a_type_nobody_named_is_refused(tmp_path):
    class Strange(LogisticRegression): pass
    Strange.__module__ = "strange"
    run = Run(tmp_path, "03_baselines")
    save_pipeline(Pipeline([("classify", Strange())]), run, "models/toy")
    run.finish()
    with pytest.raises(ArtefactError, match="not trusted"): load_pipeline(run, "models/toy")


def test_only_the_split_by_photo_tests_on_what_was_learned(shop):
    for policy in POLICIES:
        learn, judge = deal(shop, policy)
        groups = shop.group.to_numpy()
        assert bool(np.intersect1d(learn, judge).size) == (policy == "photo")
        assert bool(np.intersect1d(groups[learn], groups[judge]).size) == (policy != "group")


def test_leaks_are_put_back_where_they_were(shop):
    leaks = pd.DataFrame(dict(id=["l0", "l1"], title_suffix=["| in Leeds | Site", ""], seller_sentence=["Posted by Seller in Lamps", ""]))
    texts = with_leaks(shop[:3], leaks)
    assert "| in Leeds | Site" in texts[0] and texts[0].endswith("Posted by Seller in Lamps")
    assert texts[2].split() == shop.product_name_description[2].split()
