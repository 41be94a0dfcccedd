#!/usr/bin/env bash
# Installs this checkout in the ways that users do, each into an environment of its own: as a wheel
# with a compiler, as a wheel without one, and from a clone that lost its links, which must be refused.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=${PYTHON:-python3}

fail() {
  echo "check_install: $1" >&2
  [[ -f $scratch/log ]] && tail -n 40 "$scratch/log" >&2
  exit 1
}

# install NAME CHECKOUT: without dependencies, output in $scratch/log
install() {
  "$python" -m venv "$scratch/$1"
  "$scratch/$1/bin/python" -m pip --disable-pip-version-check install --verbose --no-deps \
    --config-settings=build-dir="$scratch/build-$1" "$2" >"$scratch/log" 2>&1
}

installed() {
  compgen -G "$scratch/$1/lib/python*/site-packages/hal/$2" >/dev/null
}

install with_compiler "$root" || fail "the wheel did not build"
installed with_compiler 'kernels/cpu/_C*.so' || fail "no native module with a compiler present"
installed with_compiler 'kernels/cpu/src' && fail "C++ sources in the wheel"
installed with_compiler 'kernels/rtc/src/*.cpp' || fail "no sources of run-time kernels in the wheel"
installed with_compiler 'server/__init__.py' || fail "linked folders are not in the wheel"
installed with_compiler 'server/page/index.html' || fail "the page is not in the wheel"
echo "check_install: wheel with a compiler: ok"

CXX=/nonexistent install without_compiler "$root" || fail "an install without a compiler must succeed"
grep -q "hal: no C++ compiler found" "$scratch/log" || fail "the missing compiler was not reported"
installed without_compiler 'kernels/cpu/_C*.so' && fail "a native module without a compiler"
cd "$scratch" && for command in hal-serve hal-run hal-info; do
  "without_compiler/bin/$command" --help >log 2>&1 || fail "$command --help failed without dependencies"
done
echo "check_install: wheel without a compiler: ok"

git -c core.symlinks=false clone --quiet --depth 1 "file://$root" lost
install lost "$scratch/lost" && fail "a checkout without links must be refused"
grep -q "lost its symbolic links" log || fail "a checkout without links must be refused with its reason"
echo "check_install: checkout without links is refused: ok"
