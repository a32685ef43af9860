# make run: the demo catalogue, end to end.  make test: every test.  Both set everything up first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= outputs/demo

.PHONY: setup run test lab app lock clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock settings.ini setup.py
	@sh scripts/install.sh "$(PYTHON)" "$(VENV)"
	@touch $@

run: setup
	$(BIN)/python run_all.py

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lab: setup
	$(BIN)/jupyter lab --notebook-dir=nbs

app: setup
	$(BIN)/fb-marketplace serve --run $(OUT)

# Pin every dependency anew, for all Python versions that the project supports (needs uv).
lock:
	uv pip compile --quiet --universal --python-version 3.11.5 --extra dev --no-header --no-annotate setup.py -o requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info
