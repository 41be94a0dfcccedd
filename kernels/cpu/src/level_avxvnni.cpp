#include "registers_avx2.h"
//
#include "level.h"
#include "portable_dots_linear.h"

namespace hal::cpu {

void dots_linear_avxvnni(const QuantizedLinearArgs& args) { run_dots_linear(args); }

}  // namespace hal::cpu
