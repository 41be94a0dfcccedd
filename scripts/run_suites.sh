#!/usr/bin/env bash
# Runs the tests suite by suite and prints what each took. A suite is a folder of tests/, and
# "repository" is the files that lie directly in it.
#   scripts/run_suites.sh [SUITE...]     default: all
#   PYTEST_ARGS='-x -k name'             more arguments for every pytest
set -uo pipefail
cd "$(dirname "$0")/.." || exit
reports=test_reports
rm -rf "$reports"
mkdir -p "$reports"

all_suites() {
  echo repository
  find tests -name 'test_*.py' -mindepth 2 | cut -d/ -f2 | sort -u
}

paths_of() {
  if [[ $1 == repository ]]; then
    find tests -maxdepth 1 -name 'test_*.py' | sort
  else
    echo "tests/$1"
  fi
}

status=0
if (($#)); then suites=("$@"); else mapfile -t suites < <(all_suites); fi
for suite in "${suites[@]}"; do
  echo "== $suite"
  start=$SECONDS
  mapfile -t paths < <(paths_of "$suite")
  # shellcheck disable=SC2086  # PYTEST_ARGS is a list of words
  pytest -q --junitxml="$reports/$suite.xml" ${PYTEST_ARGS:-} "${paths[@]}" || status=1
  echo "$suite: $((SECONDS - start)) s with start-up"
done
python scripts/junit_table.py "$reports" || status=1
exit $status
