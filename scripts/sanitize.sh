#!/usr/bin/env bash
# Builds the native module with AddressSanitizer and UBSan and runs the tests of its kernels with it.
# torch allocates with malloc, so one byte outside a tensor is seen, but by masked loads and stores:
# the compiler checks none of those, and the NaN around the tests' tensors has to.
#   PYTEST_ARGS='-x -k name'             more arguments for every pytest
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/sanitize
export CXX=${CXX:-c++}

library() {
  local path
  path=$("$CXX" -print-file-name="$1")
  if [[ $path != /* ]]; then
    echo "sanitize: $CXX has no $1; install GCC with its sanitizers, or set CXX" >&2
    exit 1
  fi
  readlink -f "$path"
}
asan=$(library libasan.so)
ubsan=$(library libubsan.so)

start=$SECONDS
rm -rf "$build/wheel" "$build"/_C*.so
python -m pip --disable-pip-version-check wheel --quiet --no-deps --wheel-dir "$build/wheel" \
  --config-settings=build-dir="$build/cmake" --config-settings=cmake.define.HAL_SANITIZE=ON \
  --config-settings=cmake.build-type=RelWithDebInfo --config-settings=install.strip=false .
python -m zipfile -e "$build"/wheel/*.whl "$build/wheel"
mv "$build"/wheel/hal/kernels/cpu/_C*.so "$build"
rm -rf "$build/wheel"
module=$(echo "$PWD/$build"/_C*.so)
echo "sanitize: built in $((SECONDS - start)) s"

# Leaks are Python's own; a second thread makes the borders between threads' shares. CXXFLAGS are for
# what tests compile themselves.
export CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=all -g"
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1
export OMP_NUM_THREADS=2
run_tests() {
  # Captured by Python only: a report must not end in a file that dies with pytest.
  # shellcheck disable=SC2086  # PYTEST_ARGS is a list of words
  LD_PRELOAD=$asan:$ubsan pytest -q -r fE --capture sys --native-module "$module" "$@" \
    ${PYTEST_ARGS:-}
}
start=$SECONDS
# AMX's machine code does what its source does, a signal for each instruction.
run_tests tests/kernels/cpu tests/kernels/native -k "not machine"
run_tests tests/conformance/test_conformance.py -m native
echo "sanitize: nothing was reported, in $((SECONDS - start)) s"
