"""What holds for the repository as a whole: notebooks and modules agree, imports are light and go down."""
import ast
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
import pytest

from fb_marketplace.pipeline import STEPS

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
MODULES = sorted((ROOT/"fb_marketplace").glob("*.py"))
FLOORS = [{"core"}, {"records"}, {"sources"}, {"cleaning"}, {"photos"}, {"duplicates"}, {"store"}, {"data", "demo"}, {"baselines", "eda"}, {"prices", "leaderboard", "pixels"}, {"backbones", "photo_input", "training", "tuning", "embeddings", "looking"}, {"vocabulary"}, {"word_vectors", "text_networks", "transformers", "explaining"}, {"readers"}, {"image", "text"}, {"calibration", "fusion_networks", "joint_embedding", "model_card"}, {"contrastive", "fusion"}, {"classifying"}, {"index"}, {"app", "cli"}]


def copy_of_sources(folder):
    for name in ("nbs", "fb_marketplace"): shutil.copytree(ROOT/name, folder/name, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    for name in ("settings.ini", "setup.py", "pyproject.toml"): shutil.copy(ROOT/name, folder/name)
    return folder


def contents(folder, pattern):
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def test_the_modules_are_what_the_notebooks_export(tmp_path):
    copy = copy_of_sources(tmp_path)
    for path in (copy/"fb_marketplace").glob("*.py"): path.write_text("__version__ = '0'\n" if path.name == "__init__.py" else "")
    subprocess.run([BIN/"nbdev_export"], cwd=copy, check=True, capture_output=True)
    assert contents(copy/"fb_marketplace", "*.py") == contents(ROOT/"fb_marketplace", "*.py")


def test_the_notebooks_are_clean_and_keep_their_tags(tmp_path):
    copy = copy_of_sources(tmp_path)
    subprocess.run([BIN/"nbdev_clean"], cwd=copy, check=True, capture_output=True)
    assert contents(copy/"nbs", "*.ipynb") == contents(ROOT/"nbs", "*.ipynb")


@pytest.mark.parametrize("path", sorted((ROOT/"nbs").glob("*.ipynb")), ids=lambda path: path.stem)
def test_steps_have_one_parameters_cell_and_chapters_none(path):
    cells = nbformat.read(path, 4).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == bool(re.match(r"\d\d_(?!core)", path.stem))
    assert cells[0].source.startswith("# ") and "\n> " in cells[0].source


@pytest.mark.parametrize("chapters", ["00", "01[a-z]", "03[a-z]", "04[a-d]", "04[e-z]", "05[a-c]", "05[d-z]", "06[a-z]", "10[a-z]"])
def test_chapters_run(chapters):
    """Steps run as steps; the chapters that they are made of, one after the other, those of a number in one process, which imports TensorFlow once."""
    done = subprocess.run([BIN/"nbdev_test", "--path", "nbs", "--file_re", f"^{chapters}", "--n_workers", "0", "--do_print"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Starting" in done.stdout + done.stderr, done.stdout + done.stderr


def test_every_notebook_runs():
    """Each is a step, or a chapter that the test above finds."""
    patterns = [mark.args[1] for mark in test_chapters_run.pytestmark if mark.name == "parametrize"][0]
    steps = {step.notebook for step in STEPS}
    assert all((path.stem in steps) != any(re.match(pattern, path.stem) for pattern in patterns) for path in (ROOT/"nbs").glob("*.ipynb"))


@pytest.mark.parametrize("module", ["core", "records", "pipeline", "sources", "store", "data", "demo", "embeddings", "joint_embedding", "model_card", "index", "cli"])
def test_imports_are_light(module):
    program = f"import sys, fb_marketplace.{module}; print(*[name for name in ('tensorflow', 'keras', 'gradio') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == ""


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1: yield node.module # nbdev writes imports of its own package so
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("fb_marketplace."): yield node.module.split(".")[1]


def test_imports_only_go_down():
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    for path in MODULES:
        if path.stem.startswith("_"): continue
        if path.stem == "pipeline": assert set(imported(path)) == {"core"}; continue
        names = set(imported(path))
        assert names or path.stem in ("core", "duplicates", "pixels"), f"no import was found in {path.stem}"
        assert not [name for name in names if floor[name] > floor[path.stem]], f"{path.stem} imports {names}"


def test_nothing_is_unpickled():
    for path in MODULES:
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {name.split(".")[0] for node in nodes for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]}
        assert not names & {"pickle", "joblib", "dill", "cloudpickle"}, path
        assert "allow_pickle=True" not in path.read_text(), path


def test_every_requirement_is_locked():
    config = ConfigParser(delimiters=["="])
    config.read(ROOT/"settings.ini", encoding="utf-8")
    wanted = [line for key in ("requirements", "dev_requirements") for line in config["DEFAULT"][key].splitlines() if line.strip()]
    name = lambda line: re.split(r"[\[<>=~!; ]", line.strip())[0].lower().replace("_", "-")
    locked = {name(line) for line in (ROOT/"requirements.lock").read_text().splitlines() if "==" in line}
    assert {name(line) for line in wanted} <= locked
