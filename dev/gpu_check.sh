#!/usr/bin/env bash
# What only a machine with a GPU can show, in one go: the tests that need one, then speeds at several depths in one table.
#
#   bash dev/gpu_check.sh              with the python that is first on the path, which must have torch with CUDA
#   bash dev/gpu_check.sh --depths 4   arguments go to dev/bench/speed.py
#
# What it prints belongs into dev/LOG.md, with the name of the device.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
    { echo "dev/gpu_check.sh: torch sees no CUDA GPU here. 'python -m dev.bench.speed' measures a CPU." >&2; exit 1; }
python -m pytest -q -rs tests/test_gpu.py
python -m dev.bench.speed --depths 4 8 12 20 "$@"
