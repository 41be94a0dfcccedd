#include "registers_neon.h"
//
#include "portable_level.h"

namespace hal::cpu {

const LevelKernels kNeonKernels = kPortableKernels;

}  // namespace hal::cpu
