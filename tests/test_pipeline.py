"""Whole runs of small notebooks: what is refused, what runs again, what failures and kills leave behind."""
import fcntl
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, writes

from fb_marketplace import pipeline
from fb_marketplace.core import read_json, sha256_file

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = [
    'out = ""\nseed = 0\nsource = ""\nweights = ""\ncount = 5\nscale = 1.0\nexact = True',
    'import os, re, time\nfrom pathlib import Path\nimport numpy as np\nfrom fb_marketplace.core import InputError, Run\nrun = Run(out, "01_numbers", seed)',
    'numbers = scale*np.random.default_rng(seed).random(count)\nrun.save_array("numbers.npy", numbers)',
    'Path(out, "kernel").write_text(str(os.getpid()))\nwhile Path("../pause").exists(): time.sleep(.05)',
    # C code that does not release Python's lock: the kernel's own watch on its parent cannot act
    'if Path("../busy").exists(): re.match(r"(a+)+$", "a"*40 + "b")',
    'run.save_array("squares.npy", numbers**2)\nrun.facts = {"numbers": count}\nrun.finish()',
]
TOTAL = [
    'out = ""\ndivisor = 1',
    'import os, time\nfrom fb_marketplace.core import InputError, Run\nfrom fb_marketplace.sums import add\nrun = Run(out, "02_total")',
    'total = add(run.load_array("numbers.npy"))\nrun.save_json("total.json", total)',
    'share = total/divisor',
    'run.record("price", "sum", [], "test", 5, {"rmse": total}, {})\nrun.finish()',
]
PROGRAM = """
from pathlib import Path
from fb_marketplace import pipeline
from fb_marketplace.core import InputError

STEPS = pipeline.Step("numbers", "01_numbers", (), {"full": {"scale": 2.0}}), pipeline.Step("total", "02_total", ("numbers",))

def check_source(source, columns, photos):
    if source and not Path(source, "listings").exists(): raise InputError(f"{source} has no\\n listings")
    return Path(source, "listings").read_text() if source else "demo"

if __name__ == "__main__": raise SystemExit(pipeline.main(Path(__file__).parent, check_source, steps=STEPS))
"""
program = {"__name__": "program"}
exec(PROGRAM, program)


def write_notebook(path, sources, prose="Some numbers."):
    cells = [new_markdown_cell(prose), *(new_code_cell(source) for source in sources)]
    cells[1].metadata["tags"] = ["parameters"]
    path.write_text(writes(new_notebook(cells=cells)))


def make_project(root):
    """Two small notebooks, and a package with two modules of its own."""
    (root/"nbs").mkdir(parents=True)
    (root/"fb_marketplace").mkdir()
    for name in ("__init__", "core", "pipeline"): shutil.copy(ROOT/"fb_marketplace"/f"{name}.py", root/"fb_marketplace")
    (root/"fb_marketplace"/"sums.py").write_text("from .numbers import plain\n\ndef add(values): return plain(values.sum())\n")
    (root/"fb_marketplace"/"numbers.py").write_text("def plain(value): return float(value)\n")
    write_notebook(root/"nbs"/"01_numbers.ipynb", NUMBERS)
    write_notebook(root/"nbs"/"02_total.ipynb", TOTAL)
    (root/"run_all.py").write_text(PROGRAM)
    return root


def start(root, *argv, **streams):
    """The program, in a process of its own."""
    streams = streams or dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen([sys.executable, "run_all.py", *argv], cwd=root, text=True, **streams)


def run(root, *argv):
    """The program, in this process."""
    return pipeline.main(root, program["check_source"], list(map(str, argv)), program["STEPS"])


def hashes(out):
    return {name: sha256_file(out/name) for name in ("numbers.npy", "squares.npy", "total.json")}


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(.02)
    return value


def gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def kernel_of(out):
    """Process id of the kernel, once it has come to its long cell."""
    path = out/"kernel"
    return int(wait_for(lambda: path.exists() and path.read_text()))


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path/"project")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A finished project, to be copied, with what its run printed and its exit code."""
    root = make_project(tmp_path_factory.mktemp("template")/"project")
    process = start(root)
    return root, *process.communicate(timeout=60), process.returncode


@pytest.fixture
def finished(template, tmp_path):
    """A project whose steps are done, now at another place."""
    return Path(shutil.copytree(template[0], tmp_path/"finished"))


def test_a_run_prints_a_line_for_each_event_and_a_table(template):
    root, printed, errors, code = template
    assert (code, errors) == (0, "")
    lines = [re.sub(r"\d+\.\d s|\d+\.\d", "TIME", line) for line in printed.splitlines()]
    assert lines[:4] == ["numbers: started", "numbers: done in TIME", "total: started", "total: done in TIME"]
    assert [line.split()[:2] for line in lines[4:7]] == [["step", "status"], ["numbers", "ran"], ["total", "ran"]]
    assert lines[5].endswith("numbers 5") and "price rmse" in lines[6]
    assert lines[7:] == ["report: outputs/demo/report.html", f"page:   {Path(sys.executable).parent/'fb-marketplace'} serve --run outputs/demo"]


def test_run_json_says_what_was_done(template):
    record = read_json(template[0]/"outputs"/"demo"/"run.json")
    assert list(record) == ["schema", "source", "profile", "seed", "versions", "steps"]
    assert (record["source"], record["profile"], record["seed"]) == ("demo", "demo", 0)
    assert {"python", "numpy"} <= set(record["versions"])
    entry = record["steps"]["numbers"]
    assert {"notebook", "status", "fingerprint", "parameters", "seconds", "finished", "artefacts"} <= set(entry)
    out = template[0]/"outputs"/"demo"
    assert entry["artefacts"]["numbers.npy"] == dict(sha256=sha256_file(out/"numbers.npy"), bytes=(out/"numbers.npy").stat().st_size)
    assert not list(out.rglob(".writing-*")) and not list(out.rglob("*.log"))


@pytest.mark.parametrize("argv, message", [
    (["--steps", "sums"], "there is no step 'sums'"),
    (["--from", ""], "there is no step ''"),
    (["--steps", "total"], "run it first with --steps numbers"),
    (["--steps", "total", "--from", "total"], "not allowed with"),
    (["-p", "counts", "3"], "did you mean 'count'"),
    (["-p", "count", "3.5"], "takes a value of type int"),
    (["-p", "scale", "inf"], "takes a value of type float"),
    (["-p", "exact", "yes"], "takes a value of type bool"),
    (["-p", "out", "x"], "use --out"),
    (["-p", "count"], "expected 2 arguments"),
    (["--seed", "one"], "invalid int value"),
    (["--seed", "-1"], "--seed takes"),
    (["--cell-timeout", "-1"], "--cell-timeout takes"),
    (["--profile", "fast"], "invalid choice"),
    (["--profile", "full"], "give their folder with --weights"),
    (["--weights", "nowhere"], "nowhere is not a folder"),
    (["--source", "nowhere"], "has no listings"),
    (["--source", "listed", "--out", "listed/out"], "lies in the source folder"),
    (["--out", "run_all.py"], "is a file"),
    (["--out", "run_all.py/deeper"], "cannot be written to"),
    (["--sed", "1"], "unrecognized arguments"),
    (["extra"], "unrecognized arguments"),
])
def test_what_cannot_be_used_is_told_in_one_line_and_nothing_is_written(project, monkeypatch, capsys, argv, message):
    (project/"listed").mkdir()
    (project/"listed"/"listings").write_text("one")
    monkeypatch.chdir(project)
    before = sorted(project.rglob("*"))
    assert run(project, *argv) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("run_all: error: ") and printed.err.count("\n") == 1
    assert message in printed.err
    assert sorted(project.rglob("*")) == before


def test_the_program_refuses_with_exit_code_2(project):
    process = start(project, "--source", "nowhere")
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, printed) == (2, "") and re.fullmatch(r"run_all: error: .*nowhere has no listings\n", errors)
    assert not (project/"outputs").exists()


def would(root, capsys, *argv):
    """Step to ("run" or "skip", why), as --dry-run says."""
    capsys.readouterr()
    assert run(root, "--dry-run", *argv) == 0
    return {line.split()[0]: tuple(line.split(maxsplit=2)[1:]) for line in capsys.readouterr().out.splitlines()[1:]}


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


NOTHING = "nothing it depends on has changed"


@pytest.mark.parametrize("change, numbers, total", [
    (lambda root: None, NOTHING, NOTHING),
    (lambda root: edit(root/"nbs"/"01_numbers.ipynb", "Some numbers.", "Other prose."), NOTHING, NOTHING),
    (lambda root: edit(root/"nbs"/"01_numbers.ipynb", "count = 5", "count = 6"), "changed: notebook", "changed: step numbers"),
    (lambda root: edit(root/"nbs"/"02_total.ipynb", "divisor = 1", "divisor = 2"), NOTHING, "changed: notebook"),
    (lambda root: edit(root/"fb_marketplace"/"sums.py", "values.sum()", "sum(values)"), NOTHING, "changed: module sums"),
    (lambda root: edit(root/"fb_marketplace"/"sums.py", "\n\n", "\n\n# a comment\n"), NOTHING, NOTHING),
    (lambda root: edit(root/"fb_marketplace"/"numbers.py", "float", "1*float"), NOTHING, "changed: module numbers"),
    (lambda root: edit(root/"fb_marketplace"/"core.py", "SCHEMA = 1", "SCHEMA = 1 + 0"), "changed: module core", "changed: module core, step numbers"),
    (lambda root: (root/"outputs/demo/total.json").unlink(), NOTHING, "results missing or damaged"),
    (lambda root: edit(root/"outputs/demo/total.json", ".", ","), NOTHING, "results missing or damaged"),
    (lambda root: edit(root/"outputs/demo/manifests/02_total.json", "rmse", "RMSE"), NOTHING, "results missing or damaged"),
    (lambda root: (root/"outputs/demo/notebooks/01_numbers.ipynb").unlink(), "results missing or damaged", "changed: step numbers"),
    (lambda root: (root/"outputs/demo/run.json").unlink(), "not run yet", "not run yet"),
])
def test_only_what_depends_on_a_change_runs_again(finished, capsys, change, numbers, total):
    change(finished)
    assert {name: why for name, (_, why) in would(finished, capsys).items()} == dict(numbers=numbers, total=total)


def test_parameters_and_packages_that_change_run_again(finished, capsys, monkeypatch):
    assert would(finished, capsys, "-p", "divisor", "2") == dict(numbers=("skip", NOTHING), total=("run", "changed: parameter divisor"))
    assert would(finished, capsys, "--seed", "1")["numbers"] == ("run", "changed: parameter seed")
    assert would(finished, capsys, "--force")["total"] == ("run", "--force")
    monkeypatch.setattr(pipeline, "versions", lambda: {"python": "9"})
    assert would(finished, capsys)["numbers"][1].startswith("changed: package python, package numpy")


def test_the_content_of_source_and_weights_counts_not_their_place(finished, tmp_path, capsys):
    for name in ("source", "weights"): (tmp_path/name).mkdir()
    (tmp_path/"source"/"listings").write_text("one")
    (tmp_path/"weights"/"net.h5").write_text("w")
    given = ["--source", tmp_path/"source", "--weights", tmp_path/"weights", "--out", tmp_path/"a {run} with 'odd' signs"]
    assert run(finished, *given, "--steps", "numbers") == 0
    assert "source" == read_json(given[-1]/"run.json")["source"]
    assert would(finished, capsys, *given)["numbers"][0] == "skip"
    moved = Path(shutil.move(tmp_path/"source", tmp_path/"moved"))
    assert would(finished, capsys, "--source", moved, *given[2:])["numbers"][0] == "skip"
    (tmp_path/"weights"/"net.h5").write_text("v")
    assert would(finished, capsys, "--source", moved, *given[2:])["numbers"][1] == "changed: weights"
    (moved/"listings").write_text("two")
    assert would(finished, capsys, "--source", moved, *given[2:])["numbers"][1] == "changed: source, weights"
    assert run(finished, *given[4:], "--steps", "total") == 2 # would call the demo what was made from a source
    assert "was made with another source" in capsys.readouterr().err


def test_after_a_failure_the_printed_command_goes_on(finished, capsys, monkeypatch):
    monkeypatch.chdir(finished)
    edit(finished/"nbs"/"02_total.ipynb", "share = total/divisor", "if not Path('../mended').exists():\\n    raise InputError('no divisor')")
    edit(finished/"nbs"/"02_total.ipynb", "import os, time", "import os, time\\nfrom pathlib import Path")
    assert run(finished, "-p", "divisor", "3") == 1
    printed = capsys.readouterr()
    assert printed.out == f"numbers: skipped, {NOTHING}\ntotal: started\n"
    for part in ("step total failed: nbs/02_total.ipynb, cell 5\n", "    | if not Path(", "InputError: no divisor\n", "as far as it got: outputs/demo/notebooks/02_total.ipynb"):
        assert part in printed.err
    assert printed.err.count("\n") < 24 and printed.err.count("InputError: no divisor") == 1
    assert "no divisor" in (finished/"outputs/demo/notebooks/02_total.ipynb").read_text()
    steps = read_json(finished/"outputs/demo/run.json")["steps"]
    assert (steps["numbers"]["status"], steps["total"]["status"]) == ("done", "failed")
    words = shlex.split(printed.err.splitlines()[-1].removeprefix("to go on: "))
    assert words == ["python", "run_all.py", "-p", "divisor", "3", "--from", "total"]
    (finished/"mended").touch()
    assert run(finished, *words[2:]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()[3:5]] == ["kept", "ran"]


@pytest.mark.parametrize("cell, options, message", [
    ("time.sleep(60)", ["--cell-timeout", "3"], "the cell took longer than 3 s; allow more with --cell-timeout"),
    ("os.kill(os.getpid(), 9)", [], "Kernel died; it was often out of memory"),
    ("raise SystemExit(0)", [], "it wrote no manifests/02_total.json; it has to call run.finish()"),
])
def test_cells_that_hang_or_kill_their_kernel_are_failures(finished, capsys, cell, options, message):
    edit(finished/"nbs"/"02_total.ipynb", "share = total/divisor", cell)
    assert run(finished, *options) == 1
    errors = capsys.readouterr().err
    assert message in errors and "02_total.ipynb, cell 5\n" in errors and f"    | {cell}" in errors
    assert would(finished, capsys)["total"] == ("run", "did not finish")
    assert not (finished/"outputs/demo/manifests/02_total.json").exists()


def test_a_killed_run_takes_its_kernel_along_and_the_next_one_ends_alike(template, project, capsys):
    out = project/"outputs"/"demo"
    (project/"busy").touch()
    process = start(project)
    kernel = kernel_of(out)
    has_lock = any(file.path.endswith("/.lock") for file in psutil.Process(kernel).open_files())
    (out/".writing-1-half").touch()
    time.sleep(.3)
    process.kill()
    process.communicate()
    try: wait_for(lambda: gone(kernel), 3)
    finally:
        if not gone(kernel): os.kill(kernel, signal.SIGKILL)
    assert has_lock # where there is no prctl, the kernel keeps the next run out for as long as it lives
    assert read_json(out/"run.json")["steps"]["numbers"]["status"] == "running"
    (project/"busy").unlink()
    assert run(project) == 0
    assert "numbers: done" in capsys.readouterr().out
    assert hashes(out) == hashes(template[0]/"outputs"/"demo")
    assert not (out/".writing-1-half").exists()


def test_an_interrupted_run_stops_its_kernel_and_says_so(project):
    (project/"pause").touch()
    before = signal.signal(signal.SIGINT, signal.default_int_handler) # a test run in the background may have been told to ignore it, and children inherit that
    process = start(project)
    signal.signal(signal.SIGINT, before)
    kernel = kernel_of(project/"outputs"/"demo")
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors.startswith("run_all: error: interrupted") and errors.count("\n") == 1
    assert gone(kernel)


def test_two_runs_do_not_share_a_folder(finished, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "locked", partial(pipeline.locked, patience=.3))
    hold = "import sys, time; from pathlib import Path; from fb_marketplace.pipeline import locked\nwith locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(20)"
    before = hashes(finished/"outputs/demo")
    with subprocess.Popen([sys.executable, "-c", hold, finished/"outputs/demo"], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        assert run(finished, "--force") == 2
        holder.kill()
    errors = capsys.readouterr().err
    assert "another run is writing to" in errors and errors.count("\n") == 1
    assert hashes(finished/"outputs/demo") == before


def test_on_a_terminal_bars_move_and_lines_stay(finished):
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = start(finished, "-p", "divisor", "2", stdout=terminal, stderr=terminal)
    os.close(terminal)
    printed = b""
    while True:
        try: piece = os.read(main, 4096)
        except OSError: break
        if not piece: break
        printed += piece
    os.close(main)
    text = printed.decode()
    assert process.wait(timeout=60) == 0
    assert "cells:" in text and "cell/s" in text and "total:  50%" in text
    assert "started" not in text and "numbers: skipped" in text and "total: done in" in text and "report: outputs/demo/report.html" in text


@pytest.mark.parametrize("step", pipeline.STEPS, ids=lambda step: step.name)
def test_the_steps_fit_their_notebooks(step):
    path = ROOT/"nbs"/f"{step.notebook}.ipynb"
    if not path.exists(): pytest.skip("notebook not written yet")
    assert {"out", "seed"} <= set(pipeline.defaults(path))
    for profile in pipeline.PROFILES: pipeline.parameters_of(step, path, {}, profile)
