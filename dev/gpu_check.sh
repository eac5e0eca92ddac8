#!/usr/bin/env bash
# What only a machine with a GPU can show, in one go: the tests that need one, then speeds at several depths in one table.
#
#   bash dev/gpu_check.sh              with the python that is first on the path, which must have torch with CUDA
#   DEPTHS="4 8" bash dev/gpu_check.sh --window=0   some depths; arguments go to dev/bench/speed.py
#
# What it prints belongs into dev/LOG.md, with the name of the device.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
    { echo "dev/gpu_check.sh: torch sees no CUDA GPU here. 'python -m dev.bench.speed' measures a CPU." >&2; exit 1; }
python -m pytest -q -rs tests/test_gpu.py || echo "A test failed; the speeds follow all the same." >&2
for depth in ${DEPTHS:-4 8 12 20 24}; do # a process each: what one leaves in memory does not matter, nor if it fails
    python -m dev.bench.speed --depths "$depth" "$@" || echo "depth $depth failed" >&2
done
