# Sourced by quickstart.sh, speedrun.sh and test.sh: make_venv FOLDER EXTRAS makes a virtual environment with nanochat in
# it, and keeps it as long as what goes into it has not changed. Needs Python 3.10 or later with venv and pip.

fail() {
    echo "$(basename "$0"): $1" >&2
    exit 1
}

make_venv() {
    local venv=$PWD/$1 extras=$2 python=${PYTHON:-python3} stamp
    if command -v flock >/dev/null; then # machines that share the checkout wait for the one that installs
        mkdir -p "$venv"
        exec 9>"$venv/lock"
        flock 9
    fi
    command -v "$python" >/dev/null || fail "there is no $python here. On Debian or Ubuntu: apt install python3 python3-venv"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$("$python" --version) is too old: Python 3.10 or later is needed. PYTHON=/path/to/python3.12 takes another."
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv"
    stamp=$({ "$python" --version && cat pyproject.toml constraints.txt && echo "$venv"; } | cksum)
    if [ "$(cat "$venv/stamp" 2>/dev/null)" != "$stamp" ]; then
        echo "Installing into $1 (some minutes and up to some GB the first time, mostly torch)"
        # Not cleared: a torch that the user has put there is kept. But venv leaves links to another Python as they are.
        rm -f "$venv"/bin/python*
        "$python" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]" ||
            fail "pip could not install what nanochat needs; its reason is above. Is there a network? The same command tries again."
        echo "$stamp" >"$venv/stamp"
    fi
    exec 9>&-
}
