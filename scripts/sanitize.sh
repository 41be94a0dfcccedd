#!/usr/bin/env bash
# Builds the native module with AddressSanitizer and UBSan and runs the tests of its kernels with it.
# Any report ends the run: torch allocates with malloc, so an access one byte outside is seen.
#   PYTEST_ARGS='-x -k name'             more arguments for every pytest
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/sanitize

library() {
  local path
  path=$("${CXX:-c++}" -print-file-name="$1")
  if [[ $path != /* ]]; then
    echo "sanitize: ${CXX:-c++} has no $1; install GCC with its sanitizers, or set CXX" >&2
    exit 1
  fi
  readlink -f "$path"
}
preload=$(library libasan.so):$(library libubsan.so)

start=$SECONDS
rm -rf "$build/wheel"
python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir "$build/wheel" \
  --config-settings=build-dir="$build/cmake" --config-settings=install.strip=false \
  --config-settings=cmake.define.HAL_SANITIZE=ON .
python -m zipfile -e "$build"/wheel/*.whl "$build/wheel"
module=$(compgen -G "$PWD/$build/wheel/hal/kernels/cpu/_C*.so") || {
  echo "sanitize: no native module was built; the native CPU kernels need a C++20 compiler" >&2
  exit 1
}
echo "sanitize: built in $((SECONDS - start)) s"

# Leaks are Python's own; a second thread makes the borders between threads' shares.
export LD_PRELOAD=$preload OMP_NUM_THREADS=2
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
start=$SECONDS
for tests in "tests/kernels" "-m native tests/conformance/test_conformance.py"; do
  # shellcheck disable=SC2086  # both are lists of words
  pytest -q --native-module "$module" ${PYTEST_ARGS:-} $tests
done
echo "sanitize: nothing was reported, in $((SECONDS - start)) s"
