#include "registers_avx512f.h"
//
#include "level.h"
#include "portable_dots_linear.h"

namespace hal::cpu {

void dots_linear_avx512vnni(const QuantizedLinearArgs& args) { run_dots_linear(args); }

}  // namespace hal::cpu
