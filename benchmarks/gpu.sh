#!/usr/bin/env bash
# Every figure that needs a GPU, in one session of at most 10 minutes; the table is written after every part.
#
#   bash benchmarks/gpu.sh           on a machine with a GPU of 80 GB or more, no network
#   bash benchmarks/gpu.sh --tiny    the same code with tiny networks, on a CPU, in minutes
#
# It needs an installed medlt: PYTHON names its interpreter (default: .venv/bin/python, else python).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if [[ -z "${PYTHON:-}" ]]; then
    if [[ -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; else PYTHON=python; fi
fi
exec timeout 600 "$PYTHON" -W ignore benchmarks/gpu.py "$@"
