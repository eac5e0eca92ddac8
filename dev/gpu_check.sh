#!/usr/bin/env bash
# What only a machine with a GPU can show, in one go: the tests that need one, speeds at several depths, and which
# attention is fastest. Each result is printed as it comes, and all ends after LIMIT seconds, 540 if nothing is said.
#
#   bash dev/gpu_check.sh                    with the python3 that is first on the path, which must have torch with CUDA
#   PARTS="24 20" bash dev/gpu_check.sh      only these: tests, attention, or a depth, for which arguments go to
#                                            dev/bench/speed.py; what tells most comes first
#
# What it prints belongs into dev/LOG.md, with the name of the device.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONUNBUFFERED=1

left() { echo $((${LIMIT:-540} - SECONDS)); }
limited() { # limited NAME SECONDS COMMAND...; interrupted, pytest still tells what failed so far
    local name=$1 start=$SECONDS seconds=$2 status=0
    [ "$(left)" -gt 20 ] || { echo "$name: left out, the time is up" >&2; return; }
    [ "$seconds" -le "$(left)" ] || seconds=$(left)
    timeout -s INT -k 5 "$seconds" "${@:3}" || status=$?
    echo "$name: $((SECONDS - start)) s$([ $status = 0 ] || echo ", failed with $status; 124 is the limit of $seconds s")"
}

python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null ||
    { echo "dev/gpu_check.sh: torch sees no CUDA GPU here. 'python -m dev.bench.speed' measures a CPU." >&2; exit 1; }
for part in ${PARTS-tests 12 attention 8 24 4 20}; do # a process each: what one leaves in memory does not matter, nor if it fails
    case $part in
    tests) limited tests 200 python3 -m pytest -q -rs --tb=short --durations=10 --show-capture=no tests/test_gpu.py ;;
    attention) limited attention 120 python3 -m dev.bench.attention ;;
    *) limited "depth $part" 240 python3 -m dev.bench.speed --depths "$part" "$@" ;;
    esac
done
