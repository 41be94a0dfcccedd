#!/usr/bin/env bash
# What CI cannot check: the same tests on a real accelerator, from a bare checkout.
#   scripts/gpu_check.sh ops|kernels|engine|conform
#     ops      every op and tiny models on the device, reference and torch-native kernels, against
#              the float64 oracle, case by case
#     kernels  the same for our own kernels (Triton, and C++ compiled at run time)
#     engine   whole models on the device against transformers
#     conform  what users run, hal-info conform: all kernels and models, as one report
#   DEVICE=cuda       device to test
#   OUT=FOLDER        where the JUnit XML and JSON go, default gpu_check_out
#   LIMIT_S=540       a part that takes longer is stopped and fails
# Needs torch, transformers, numpy, safetensors, tokenizers and pytest; no install, no server packages.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
part=${1:-}
device=${DEVICE:-cuda}
out=${OUT:-gpu_check_out}
export PYTHONPATH=.pkg PYTHONDONTWRITEBYTECODE=1

case $part in
  ops) selection=(tests/conformance -k "not triton and not mma_int4 and not gemv") ;;
  kernels) selection=(tests/conformance -k "triton or mma_int4 or gemv") ;;
  engine) selection=(tests -m parity) ;;
  conform) selection=() ;;
  *)
    echo "usage: scripts/gpu_check.sh ops|kernels|engine|conform" >&2
    exit 2
    ;;
esac

describe_machine() {
  python3 -P - "$device" <<'PYTHON'
import json, platform, subprocess, sys

import torch

commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
kind = sys.argv[1].partition(":")[0]
is_there = kind == "cpu" or torch.cuda.is_available()
print(json.dumps({
    "device": sys.argv[1],
    "name": torch.cuda.get_device_name() if kind != "cpu" and is_there else platform.machine(),
    "torch": torch.__version__,
    "python": platform.python_version(),
    "commit": commit.stdout.strip() or None,
}))
sys.exit(0 if is_there else f"gpu_check: torch {torch.__version__} sees no GPU")
PYTHON
}

mkdir -p "$out/$part"
rm -f "$out/$part"/*.xml "$out/$part.json"
describe_machine | tee "$out/$part.machine.json" || exit 2

was_stopped() {
  (($1 == 124 || $1 == 137)) && echo "gpu_check: $part was stopped after ${LIMIT_S:-540} s"
}

if [[ $part == conform ]]; then
  timeout --kill-after=10 "${LIMIT_S:-540}" \
    python3 -P -m hal.cli.info conform --device "$device" --report "$out/conform.json"
  status=$?
  was_stopped "$status"
  exit "$status"
fi
timeout --kill-after=10 "${LIMIT_S:-540}" \
  python3 -P -m pytest -q -p no:cacheprovider --device "$device" \
  --junitxml="$out/$part/$part.xml" "${selection[@]}"
status=$?
was_stopped "$status"
python3 -P scripts/junit_table.py "$out/$part" --json "$out/$part.json" || status=1
exit "$status"
