#include "registers_neon.h"
//
#include "portable_level.h"

namespace hal::cpu {

const LevelKernels kDotprodKernels = kPortableKernels;

}  // namespace hal::cpu
