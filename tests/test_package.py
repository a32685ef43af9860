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

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
MODULES = sorted((ROOT/"fb_marketplace").glob("*.py"))
FLOORS = [{"core"}, {"records"}, {"sources"}, {"cleaning"}, {"photos"}, {"duplicates"}, {"store"}, {"data", "demo"}, {"baselines", "eda"}, {"prices", "leaderboard", "pixels"}, {"backbones", "photo_input", "training", "tuning", "embeddings", "looking"}, {"vocabulary"}, {"word_vectors", "text_networks", "transformers", "explaining"}, {"readers"}, {"image", "text"}, {"joint_embedding"}, {"fusion"}, {"index"}, {"app", "cli"}]


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


@pytest.mark.parametrize("chapter", ["00_core", "00a_pipeline", "00b_records", "01a_demo", "01b_sources", "01c_cleaning", "01d_photos", "01e_duplicates", "01f_store", "03a_leaderboard", "03b_prices", "03c_pixels", "04a_backbones", "04b_photo_input", "04c_training", "04d_tuning", "04e_embeddings", "04f_looking", "05a_vocabulary", "05b_word_vectors", "05c_text_networks", "05d_transformers", "05e_readers", "05f_explaining", "06c_joint_embedding", "10a_cli"])
def test_chapters_run(chapter):
    done = subprocess.run([BIN/"nbdev_test", "--path", f"nbs/{chapter}.ipynb", "--n_workers", "0"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["core", "records", "pipeline", "sources", "store", "data", "demo", "embeddings", "index", "cli"])
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
