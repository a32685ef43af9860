#!/bin/sh
# install.sh PYTHON VENV: make VENV with PYTHON and install the locked requirements and this project into it.
# install.sh --add VENV PACKAGE: add one package to VENV, without what it says it needs.
# Uses uv when it is there, else pip.
set -eu
if [ "$1" = --add ]; then
    if command -v uv >/dev/null 2>&1; then uv pip install --quiet --no-deps --python "$2/bin/python" "$3"
    else "$2/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps "$3"; fi
    exit
fi
python=$1 venv=$2
"$python" -c 'import sys; sys.exit("Python 3.11.5 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11, 5) else 0'
if command -v uv >/dev/null 2>&1; then
    uv venv --quiet --clear --python "$python" "$venv"
    uv pip install --quiet --compile-bytecode --python "$venv/bin/python" -r requirements.lock
    uv pip install --quiet --no-deps --no-build-isolation --python "$venv/bin/python" -e .
else
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements.lock
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
fi
