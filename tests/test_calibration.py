"""Probabilities of any kind are repaired, judged and turned into answers and sets, or refused with a reason."""
import json
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from fb_marketplace.calibration import (Calibration, ConformalSets, answered, calibration_error, calibration_metrics, check_log_proba, choose_calibration, confidence, conformal_limit,
    coverage_and_size, coverage_by_category, coverage_curve, draw_coverage, draw_reliability, equal_mass, error_by_chance, fit_conformal, fit_dirichlet, fit_temperature,
    no_calibration, per_category, reliability, selective_metrics, share_bounds, strangeness, threshold_for)
from fb_marketplace.core import InputError, Run

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
FITS = [no_calibration, fit_temperature, fit_dirichlet]
SCORES = ["lac", "aps", "raps"]


@st.composite
def judgements(draw):
    """Log-probabilities with all that is odd about them, and codes; something is said of at least one row."""
    n, categories = draw(st.integers(1, 12)), draw(st.integers(2, 5))
    scores = st.one_of(st.floats(-50, 50), st.sampled_from([0., -np.inf]))
    rows = np.array(draw(st.lists(st.lists(scores, min_size=categories, max_size=categories), min_size=n, max_size=n)))
    rows[~np.isfinite(rows).any(1)] = 0
    with np.errstate(all="ignore"): rows = log_softmax(rows, axis=1)
    silent = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    silent[draw(st.integers(0, n - 1))] = False
    rows[silent] = np.nan
    codes = np.array(draw(st.lists(st.integers(0, draw(st.integers(0, categories - 1))), min_size=n, max_size=n))) # often not all categories
    return rows, codes


def same(n, categories=3):
    """Rows that are all equally sure."""
    return np.log(np.tile([.5] + [.5/(categories - 1)]*(categories - 1), (n, 1)))


ODD = [(same(1), np.array([2])), (same(12), np.zeros(12, int)), (np.array([[0, -np.inf]]), np.array([1])), (np.array([[0, -np.inf], [np.nan]*2]), np.array([0, 1]))]


def with_odd_ones(examples):
    def wrap(test):
        for case in ODD: test = example(case)(test)
        return settings(max_examples=examples, deadline=None)(given(judgements())(test))
    return wrap


@with_odd_ones(60)
def test_repaired_rows_are_log_probabilities_and_silent_rows_stay_silent(case):
    rows, codes = case
    for fit in FITS:
        repaired = fit(rows, codes).log_proba(rows)
        assert np.array_equal(np.isnan(repaired), np.isnan(rows))
        assert np.allclose(np.exp(repaired[~np.isnan(rows[:, 0])]).sum(1), 1)
    assert np.allclose(np.exp(no_calibration(rows).log_proba(rows)), np.exp(rows), atol=1e-9, equal_nan=True)


@with_odd_ones(15)
def test_a_repair_fits_its_own_rows_at_least_as_well(case):
    rows, codes = case
    groups = np.arange(len(codes))
    losses = [calibration_metrics(fit(rows, codes).log_proba(rows), codes, groups)[0]["log_loss"] for fit in (no_calibration, fit_temperature)]
    assert np.isfinite(losses).all() and losses[1] <= losses[0] + 1e-3


@with_odd_ones(15)
def test_measures_of_any_rows_are_shares_and_lie_in_their_intervals(case):
    rows, codes = case
    names, groups = [f"category {code}" for code in range(rows.shape[1])], np.arange(len(codes))//2
    values, ci95 = calibration_metrics(rows, codes, groups)
    assert 0 <= values["calibration_error"] <= 1 and -1 <= values["overconfidence"] <= 1
    assert abs(values["overconfidence"]) <= values["calibration_error"] + 1e-5 # bins cannot cancel out more than all rows do
    assert all(low <= high + 1e-6 for low, high in ci95.values())
    table, spoke = reliability(rows, codes), (~np.isnan(rows[:, 0])).sum()
    assert table.n.sum() == spoke and ((table.low <= table.accuracy) & (table.accuracy <= table.high)).all()
    by_name = per_category(rows, codes, names)
    assert by_name.n.sum() == by_name.taken.sum() == spoke and by_name[["recall", "precision", "F1"]].stack().dropna().between(0, 1).all()


@with_odd_ones(15)
def test_answers_hold_what_their_threshold_says(case):
    rows, codes = case
    curve = coverage_curve(rows, codes)
    assert curve.coverage.iloc[-1] == pytest.approx((~np.isnan(rows[:, 0])).mean())
    for accuracy in (.3, .95):
        point, certain = threshold_for(rows, codes, accuracy), threshold_for(rows, codes, accuracy, .9)
        assert certain.coverage <= point.coverage
        for threshold in (point, certain):
            json.dumps(threshold._asdict(), allow_nan=False)
            given_rows = answered(rows, threshold)
            assert given_rows.mean() == pytest.approx(threshold.coverage) and not given_rows[np.isnan(rows[:, 0])].any()
            values, _ = selective_metrics(rows, codes, np.arange(len(codes)), threshold)
            assert values["coverage"] == pytest.approx(threshold.coverage, abs=1e-5)
            if threshold.coverage: assert values["selective_accuracy"] == pytest.approx(threshold.accuracy, abs=1e-5) and threshold.accuracy >= accuracy


@with_odd_ones(40)
def test_sets_cover_the_rows_they_were_fitted_to(case):
    rows, codes = case
    spoke = ~np.isnan(rows[:, 0])
    for score in SCORES:
        conformal = fit_conformal(rows, codes, .7, score)
        full, lean = conformal.sets(rows), conformal.sets(rows, never_empty=False)
        assert full.any(1).all() and (lean <= full).all() and full[~spoke].all()
        assert lean[spoke, codes[spoke]].mean() >= .7
        assert np.array_equal(conformal.sets(rows[::-1]), full[::-1]) # a row's set does not depend on its neighbours
        wider = fit_conformal(rows, codes, .8, score).sets(rows)
        assert (full <= wider).all()


@pytest.mark.parametrize("case", ODD, ids=["one row", "all alike", "certain and wrong", "one silent"])
def test_odd_rows_are_drawn_and_their_sets_measured(case):
    rows, codes = case
    groups = np.arange(len(codes))
    assert draw_reliability(rows, codes, groups).axes[0].get_title(loc="left") and draw_coverage(dict(text=rows, other=rows), codes).axes[0].get_title(loc="left")
    full = fit_conformal(rows, codes, .7).sets(rows)
    assert set(coverage_and_size(full, codes, groups)[0]) == {"set_coverage", "set_size", "single", "empty"}
    assert coverage_by_category(full, codes, groups, list("abc")).n.sum() == len(codes)


@settings(max_examples=60, deadline=None)
@given(judgements(), st.integers(1, 6), st.integers(2, 4))
@pytest.mark.filterwarnings("ignore:The least populated class")
def test_a_choice_is_made_or_refused(case, count, folds):
    rows, codes = case
    try: repair, losses = choose_calibration(rows, codes, np.arange(len(codes)) % count, folds=folds)
    except InputError as error: assert "too few to choose a calibration" in str(error)
    else: assert np.isfinite(losses).all() and np.isfinite(repair.weights).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.integers(1, 20))
def test_equal_confidences_share_a_bin(sure, bins):
    sure = np.array(sure*2)
    bin = equal_mass(sure, bins)
    assert len(set(bin)) <= bins and np.array_equal(bin[:len(bin)//2], bin[len(bin)//2:])
    assert (np.diff(bin[np.argsort(sure, kind="stable")]) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), st.floats(.05, .95))
def test_the_limit_is_the_next_score_up(scores, level):
    limit, n = conformal_limit(np.array(scores), level), len(scores)
    if limit is None: assert (n + 1)*level > n - 1e-6
    else: assert (np.array(scores) <= limit).sum() >= (n + 1)*level - 1e-6


def test_exact_bounds_hold_as_often_as_they_say():
    random, share = np.random.default_rng(0), np.array([.02, .5, .9, .99])
    low, high = share_bounds(random.binomial(40, share, (4000, 4)), 40)
    assert (((low <= share) & (share <= high)).mean(0) >= .945).all()


@pytest.mark.parametrize("rows", [[[-np.inf]*3], [[2., 1., 0.]], [[0., np.nan, -np.inf]], [[np.inf, 0., 0.]], [[-800.]*3], [[800.]*3]], ids=["zero", "scores", "partly nan", "infinite", "tiny", "huge"])
def test_what_is_no_probability_is_refused(rows):
    rows, codes, groups = np.vstack([same(3), rows]), np.zeros(4, int), np.arange(4)
    uses = [lambda: check_log_proba(rows), lambda: confidence(rows), lambda: no_calibration(rows).log_proba(rows), lambda: fit_temperature(rows, codes), lambda: fit_dirichlet(rows, codes),
            lambda: choose_calibration(rows, codes, groups, folds=2), lambda: reliability(rows, codes), lambda: calibration_error(rows, codes), lambda: error_by_chance(rows),
            lambda: calibration_metrics(rows, codes, groups), lambda: per_category(rows, codes, list("abc")), lambda: threshold_for(rows, codes), lambda: answered(rows, .5),
            lambda: selective_metrics(rows, codes, groups, .5), lambda: fit_conformal(rows, codes), lambda: ConformalSets("lac", .9, .5).sets(rows)]
    for use in uses:
        with pytest.raises(InputError, match=r"row 3 of the log-probabilities does not add up to one"): use()


@pytest.mark.parametrize("codes, match", [([0], "as many category codes"), ([0, 3], "from 0 to 2"), ([-1, 0], "not learned")])
def test_codes_that_do_not_fit_are_refused(codes, match):
    for use in (fit_temperature, reliability, coverage_curve, fit_conformal):
        with pytest.raises(InputError, match=match): use(same(2), np.array(codes))
    for shape in ((3,), (2, 0)):
        with pytest.raises(InputError, match="are a table"): check_log_proba(np.zeros(shape))


def test_no_rows_at_all():
    assert check_log_proba(np.empty((0, 3))).shape == confidence(np.empty((0, 3)))[:, None].repeat(3, 1).shape == ConformalSets("aps", .9, .5).sets(np.empty((0, 3))).shape
    for use in (fit_temperature, coverage_curve, fit_conformal):
        with pytest.raises(InputError, match="nothing was said of any row"): use(np.empty((0, 3)), np.empty(0, int))


def test_half_precision_is_precise_enough():
    rows = log_softmax(np.random.default_rng(0).normal(size=(200, 13)), axis=1)
    assert np.allclose(check_log_proba(rows.astype(np.float16)), rows, atol=5e-3)


@pytest.mark.parametrize("missing", [0, 2])
def test_a_category_that_never_occurs_does_no_harm(missing):
    random = np.random.default_rng(0)
    rows = log_softmax(2*random.normal(size=(600, 3)), axis=1)
    codes = (rows + random.gumbel(size=rows.shape) - 100*(np.arange(3) == missing)).argmax(1)
    for penalty in (1e-3, .1, 10.):
        repair = fit_dirichlet(rows, codes, penalty)
        assert np.isfinite(repair.weights).all() and (repair.weights.diagonal() <= np.exp(4) + 1e-6).all()
        assert np.isfinite(repair.log_proba(np.array([[-np.inf, -np.inf, 0.]]))).all()
    assert choose_calibration(rows, codes, np.arange(600))[0].kind == "Dirichlet"
    assert fit_conformal(rows, codes).sets(rows)[np.arange(600), codes].mean() >= .9


def test_the_same_rows_give_the_same_choice_in_any_number_of_calls():
    random = np.random.default_rng(1)
    rows, codes, groups = log_softmax(3*random.normal(size=(300, 4)), axis=1), random.integers(4, size=300), np.arange(300)//3
    first, again = (choose_calibration(rows, codes, groups) for _ in range(2))
    assert np.array_equal(first[0].weights, again[0].weights) and first[1].equals(again[1])
    assert calibration_metrics(rows, codes, groups) == calibration_metrics(rows, codes, groups)


def test_silent_rows_change_no_fit():
    random = np.random.default_rng(2)
    rows, codes = log_softmax(3*random.normal(size=(200, 4)), axis=1), random.integers(4, size=200)
    padded, more = np.vstack([rows, np.full((50, 4), np.nan)]), np.r_[codes, np.zeros(50, int)]
    for fit in FITS[1:]: assert np.array_equal(fit(rows, codes).weights, fit(padded, more).weights)
    assert calibration_metrics(rows, codes, np.arange(200)) == calibration_metrics(padded, more, np.arange(250))
    assert fit_conformal(rows, codes).limit == fit_conformal(padded, more).limit
    assert threshold_for(padded, more, .4).coverage == pytest.approx(threshold_for(rows, codes, .4).coverage*200/250)


def test_what_was_saved_is_loaded(tmp_path):
    random = np.random.default_rng(3)
    rows, codes = log_softmax(3*random.normal(size=(200, 4)), axis=1), random.integers(4, size=200)
    run, repair, sets = Run(tmp_path, "06_fusion"), fit_dirichlet(rows, codes), {score: fit_conformal(rows, codes, score=score, penalty=.2, free=1) for score in SCORES}
    repair.save(run, "models/calibration")
    for score, conformal in sets.items(): conformal.save(run, f"models/{score}.json")
    run.finish()
    assert np.array_equal(Calibration.load(run, "models/calibration").log_proba(rows), repair.log_proba(rows))
    for score, conformal in sets.items(): assert vars(ConformalSets.load(run, f"models/{score}.json")) == vars(conformal)


def test_strangeness_grows_as_probability_falls():
    rows = log_softmax(np.random.default_rng(4).normal(size=(50, 6)), axis=1)
    order = np.argsort(-rows, axis=1)
    for score in SCORES: assert (np.diff(np.take_along_axis(strangeness(rows, score), order, axis=1)) > 0).all()


def test_lac_sets_are_smallest_and_aps_sets_even_out_easy_and_hard_rows():
    random = np.random.default_rng(5)
    def make(n):
        rows = log_softmax(random.choice([1., 6.], (n, 1))*random.normal(size=(n, 10)), axis=1)
        return rows, (rows + random.gumbel(size=rows.shape)).argmax(1)
    (fitted, truth), (fresh, told) = make(4000), make(8000)
    sets = {score: fit_conformal(fitted, truth, score=score).sets(fresh) for score in SCORES}
    held, size = {score: rows[np.arange(8000), told] for score, rows in sets.items()}, {score: rows.sum(1).mean() for score, rows in sets.items()}
    assert all(.88 <= rows.mean() <= .92 for rows in held.values()) and size["lac"] == min(size.values())
    easy = confidence(fresh) > .8
    assert abs(held["aps"][easy].mean() - held["aps"][~easy].mean()) < abs(held["lac"][easy].mean() - held["lac"][~easy].mean())


def test_warnings_do_not_come_from_ordinary_use():
    rows = np.vstack([same(30), np.full((3, 3), np.nan)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_calibration(rows, np.arange(33) % 3, np.arange(33))
