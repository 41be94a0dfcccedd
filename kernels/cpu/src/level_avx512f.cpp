#include "registers_avx512f.h"
//
#include "portable_level.h"

namespace hal::cpu {

const LevelKernels kAvx512fKernels = kPortableKernels;

}  // namespace hal::cpu
