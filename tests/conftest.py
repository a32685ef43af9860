"""One small run of the demo catalogue, made once and read by many tests."""
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["-p", "demo_listings", "400", "-p", "cnn_epochs", "2"]


def run_all(*options, **kwargs):
    return subprocess.run([sys.executable, "run_all.py", *map(str, options)], cwd=ROOT, capture_output=True, text=True, **kwargs)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")/"run"
    done = run_all("--out", out, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    return out
