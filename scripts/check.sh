#!/usr/bin/env bash
# Everything that can be said about the sources without running them. Runs all, then fails if any did.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
failed=()

check() {
  local name=$1
  shift
  echo "== $name"
  "$@" || failed+=("$name")
}

check format ruff format --check --output-format concise
check ruff ruff check --quiet --output-format concise
check mypy mypy
check sizes python scripts/check_sizes.py
check layout python scripts/check_layout.py
check docs python scripts/generate_docs.py --check

if ((${#failed[@]})); then
  echo "check: FAILED: ${failed[*]}"
  exit 1
fi
echo "check: ok"
