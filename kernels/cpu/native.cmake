# The native module hal.kernels.cpu._C: kernels (plain C++, C ABI) and their Python binding.

find_package(Python 3.11 REQUIRED COMPONENTS Interpreter Development.Module)
execute_process(
  COMMAND "${Python_EXECUTABLE}" -m nanobind --cmake_dir
  OUTPUT_VARIABLE nanobind_dir OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
# An isolated build has a new nanobind folder each time; the cache must not keep the last one.
set(nanobind_DIR "${nanobind_dir}" CACHE PATH "nanobind" FORCE)
find_package(nanobind CONFIG REQUIRED)
find_package(Threads REQUIRED)
include(CheckCXXCompilerFlag)

# Instruction sets are chosen at run time, so a wheel built on one CPU runs on all of them:
# no -march here. A file named *_avx2.cpp, *_neon.cpp and so on may use that set; the dispatcher
# sees HAL_HAS_AVX2, HAL_HAS_NEON and so on for those that were compiled in.
set(avx2_flags -mavx2 -mfma -mf16c)
set(avx512f_flags -mavx512f -mavx512bw -mavx512vl -mavx512dq ${avx2_flags})
set(avxvnni_flags -mavxvnni ${avx2_flags})
set(avx512vnni_flags -mavx512vnni ${avx512f_flags})
set(avx512_flags ${avx512f_flags} -mavx512bf16 -mavx512vnni)
set(amx_flags ${avx512_flags} -mamx-tile -mamx-int8 -mamx-bf16)
set(neon_flags -march=armv8-a)
set(dotprod_flags -march=armv8.2-a+dotprod)
set(x86_isas avx2 avxvnni avx512f avx512vnni avx512 amx)
set(arm_isas neon dotprod)
set(isas "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(isas ${x86_isas})
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  set(isas ${arm_isas})
endif()

file(GLOB kernel_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_LIST_DIR}/src/*.cpp")
set(kernel_definitions "")
foreach(isa IN ITEMS ${x86_isas} ${arm_isas})
  string(TOUPPER "${isa}" upper)
  set(isa_sources ${kernel_sources})
  list(FILTER isa_sources INCLUDE REGEX "_${isa}\\.cpp$")
  set(usable FALSE)
  if(isa IN_LIST isas)
    list(JOIN ${isa}_flags " " flags)
    check_cxx_compiler_flag("${flags}" HAL_CXX_HAS_${upper})
    set(usable ${HAL_CXX_HAS_${upper}})
  endif()
  if(usable)
    set_source_files_properties(${isa_sources} PROPERTIES COMPILE_OPTIONS "${${isa}_flags}")
    list(APPEND kernel_definitions HAL_HAS_${upper}=1)
  else()
    list(REMOVE_ITEM kernel_sources ${isa_sources})
    if(isa IN_LIST isas)
      message(STATUS "hal: the C++ compiler has no ${upper}; leaving its kernels out")
    endif()
  endif()
endforeach()

# Codes are looked up with VBMI, which every CPU that has BF16 has as well, but for Cooper Lake: its
# own file, and its own reason in the kernels' predicate.
if(HAL_CXX_HAS_AVX512)
  set_property(SOURCE "${CMAKE_CURRENT_LIST_DIR}/src/linear_decoded_avx512.cpp"
    APPEND PROPERTY COMPILE_OPTIONS -mavx512vbmi)
endif()

add_library(hal_cpu_kernels INTERFACE)
target_compile_features(hal_cpu_kernels INTERFACE cxx_std_20)
target_compile_definitions(hal_cpu_kernels INTERFACE ${kernel_definitions})
target_compile_options(hal_cpu_kernels INTERFACE
  $<$<CXX_COMPILER_ID:GNU,Clang,AppleClang>:-Wall -Wextra>)
# For scripts/sanitize.sh: an access out of bounds or undefined behaviour ends the process.
option(HAL_SANITIZE "Compile the native module with AddressSanitizer and UBSan" OFF)
if(HAL_SANITIZE)
  set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=all)
  target_compile_options(hal_cpu_kernels INTERFACE ${sanitizers} -fno-omit-frame-pointer -O1 -g)
  target_link_options(hal_cpu_kernels INTERFACE ${sanitizers})
endif()
target_link_libraries(hal_cpu_kernels INTERFACE Threads::Threads)

# What the module was made from, compiled into it: evidence about these kernels holds for these
# sources only, and a wheel does not carry them. The same sum as hal.evidence.source.hash_of_files.
file(GLOB hashed_sources CONFIGURE_DEPENDS
  "${CMAKE_CURRENT_LIST_DIR}/src/*.cpp" "${CMAKE_CURRENT_LIST_DIR}/src/*.h"
  "${CMAKE_CURRENT_LIST_DIR}/bind.cpp" "${CMAKE_CURRENT_LIST_DIR}/native.cmake")
set(hashes "")
foreach(source IN LISTS hashed_sources)
  file(RELATIVE_PATH name "${CMAKE_CURRENT_LIST_DIR}" "${source}")
  file(SHA256 "${source}" hash)
  list(APPEND hashes "${name} ${hash}")
endforeach()
list(SORT hashes)
list(JOIN hashes "\n" hashes)
string(SHA256 source_hash "${hashes}")
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${hashed_sources})
set_source_files_properties("${CMAKE_CURRENT_LIST_DIR}/bind.cpp" PROPERTIES COMPILE_DEFINITIONS
  "HAL_SOURCE_HASH=\"${source_hash}\";HAL_COMPILER=\"${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}\"")

nanobind_add_module(_C NB_STATIC NOMINSIZE "${CMAKE_CURRENT_LIST_DIR}/bind.cpp" ${kernel_sources})
target_link_libraries(_C PRIVATE hal_cpu_kernels)
install(TARGETS _C LIBRARY DESTINATION hal/kernels/cpu)
message(STATUS "hal: native CPU kernels with ${CMAKE_CXX_COMPILER} ${CMAKE_CXX_COMPILER_VERSION}")
