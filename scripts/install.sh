#!/usr/bin/env bash
# Creates a virtual environment and installs this checkout into it, editable, with the test tools.
#   scripts/install.sh [FOLDER]          default .venv
#   PYTHON=python3.12                    interpreter, default the first one that is 3.11 or newer
#   TORCH_INDEX=URL                      index to take torch from, default PyPI
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv}

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if is_new_enough "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "install: no Python 3.11 or newer among: ${PYTHON:-python3 python3.13 python3.12 python3.11}." \
    "Install one, or name it: PYTHON=/path/to/python make install" >&2
  exit 1
}

python=$(find_python)
if ! is_new_enough "$venv/bin/python" || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  rm -rf "$venv"
  if ! "$python" -m venv "$venv"; then
    rm -rf "$venv"
    echo "install: '$python -m venv' failed. On Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
  fi
fi

pip=("$venv/bin/python" -m pip --disable-pip-version-check)
if [[ -n ${TORCH_INDEX:-} ]]; then
  "${pip[@]}" install --index-url "$TORCH_INDEX" "torch>=2.11,<2.14"
elif [[ $(uname -s) == Linux && ! -e /proc/driver/nvidia/version && -z ${CI:-} ]]; then
  echo "install: no NVIDIA driver here, and PyPI's torch for Linux brings about 3 GB of CUDA packages." \
    "The CPU build is smaller: make install TORCH_INDEX=https://download.pytorch.org/whl/cpu"
fi
echo "install: into $venv with $("$venv/bin/python" --version); the first time takes some minutes"
"${pip[@]}" install --quiet --editable '.[test]'

if compgen -G "$venv/lib/python*/site-packages/hal/kernels/cpu/_C*.so" >/dev/null; then
  echo "install: done, with native CPU kernels"
else
  echo "install: done, without native CPU kernels: reference kernels will run, slower." \
    "With a C++20 compiler (apt-get install g++), run scripts/install.sh again"
fi
