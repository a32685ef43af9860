"""Searches that are killed, and the same search on a cluster."""
import multiprocessing
import os
import signal
import sys
import time

import pytest

from fb_marketplace.core import InputError
from fb_marketplace.tuning import Between, Choice, best, search

SPACE = dict(rate=Between(1e-4, 1e-1, log=True), width=Between(8, 64), pooling=Choice(["mean", "max"]))


def make_objective():
    """A function within a function, which Ray sends to its workers whole."""
    def objective(parameters, report):
        if parameters["width"] > 60: raise ValueError("too wide")
        value = 1 - abs(parameters["rate"] - .01) - (parameters["pooling"] == "max")/10
        for epoch in range(1, 4): report(epoch, value)
        return value
    return objective


objective = make_objective()


def killed_search(folder, at):
    calls = []
    def objective_and_death(parameters, report):
        calls.append(parameters)
        if len(calls) == at: os.kill(os.getpid(), signal.SIGKILL)
        return objective(parameters, report)
    search(objective_and_death, SPACE, 16, 600, folder)


def test_a_killed_search_ends_where_an_undisturbed_one_does(tmp_path):
    for at in (3, 10):
        process = multiprocessing.get_context("spawn").Process(target=killed_search, args=(tmp_path/"killed", at))
        process.start(); process.join()
        assert process.exitcode == -signal.SIGKILL
    asked = []
    def counting(parameters, report): asked.append(parameters); return objective(parameters, report)
    trials = search(counting, SPACE, 16, 600, tmp_path/"killed")
    assert trials.drop(columns="seconds").equals(search(objective, SPACE, 16, 600, tmp_path/"whole").drop(columns="seconds"))
    assert len(trials) == 16 and len(asked) == 16 - 2 - 9


def test_time_is_bounded_over_all_sessions(tmp_path):
    def slow(parameters, report): time.sleep(.2); return 1.
    trials = search(slow, SPACE, 50, .7, tmp_path)
    assert 1 <= len(trials) <= 4
    assert len(search(slow, SPACE, 50, .7, tmp_path)) <= len(trials) + 1


def test_all_fail(tmp_path):
    def broken(parameters, report): raise RuntimeError("no data")
    trials = search(broken, SPACE, 2, 600, tmp_path)
    assert trials.reason.tolist() == ["RuntimeError: no data"]*2
    with pytest.raises(InputError, match="none of 2 trials.*no data"): best(trials)


def test_without_ray_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"fb-marketplace\[ray\]"): search(objective, SPACE, 2, 600, tmp_path, address="auto")


def test_ray_runs_the_same_objective(tmp_path):
    pytest.importorskip("ray")
    trials = search(make_objective(), SPACE, 6, 600, tmp_path, address="local")
    assert len(trials) == 6 and set(trials.columns) == {"trial", *SPACE, "value", "seconds", "state", "reason"}
    assert "complete" in set(trials.state) and best(trials).value == trials.value[trials.state == "complete"].max()
    again = search(make_objective(), SPACE, 6, 600, tmp_path, address="local")
    assert sorted(again.value) == sorted(trials.value) # none was run again; Ray may list them in another order
