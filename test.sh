#!/usr/bin/env bash
# From a fresh clone to a passed test suite: makes .test-venv, installs nanochat in it, checks the style, runs the tests.
#
#   bash test.sh                      everything
#   bash test.sh tests/test_gpt.py    arguments go to pytest
#
# Needs Python 3.10 or later with venv and pip, and the package registry the first time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

fail() {
    echo "test.sh: $1" >&2
    exit 1
}

python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "there is no $python here. On Debian or Ubuntu: apt install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$("$python" --version) is too old: Python 3.10 or later is needed. PYTHON=/path/to/python3.12 bash test.sh takes another."
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv"

# The environment is kept as long as what goes into it has not changed.
venv=$PWD/.test-venv
stamp=$({ "$python" --version && cat pyproject.toml constraints.txt && echo "$venv"; } | cksum)
if [ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ]; then
    echo "test.sh: installing into .test-venv (some minutes and up to some GB the first time, mostly torch)"
    "$python" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[wiki,test]'
    echo "$stamp" >"$venv/stamp"
fi

"$venv/bin/ruff" check --quiet .
"$venv/bin/ruff" format --check --quiet . || fail "ruff format would change files. Run: .test-venv/bin/ruff format"
exec "$venv/bin/python" -m pytest -q -rs --durations=15 "$@"
