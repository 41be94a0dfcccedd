#include "registers_avx2.h"
//
#include "portable_level.h"

namespace hal::cpu {

const LevelKernels kAvx2Kernels = kPortableKernels;

}  // namespace hal::cpu
