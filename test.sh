#!/usr/bin/env bash
# From a fresh clone to a passed test suite: makes .test-venv, installs nanochat in it, checks the style, runs the tests.
#
#   bash test.sh                      everything
#   bash test.sh tests/test_gpt.py    arguments go to pytest
#
# Needs Python 3.10 or later with venv and pip, and the package registry the first time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

source dev/venv.sh
make_venv .test-venv wiki,test

.test-venv/bin/ruff check --quiet .
.test-venv/bin/ruff format --check --quiet . || fail "ruff format would change files. Run: .test-venv/bin/ruff format"
# A process for each core; a file's tests stay together, since they share servers and browsers.
exec .test-venv/bin/python -m pytest -q -rs --durations=15 -n auto --dist loadfile "$@"
