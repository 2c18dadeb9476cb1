// The driver's encoder of tensor maps, which bulk tensor copies read.
#pragma once

#include <cudaTypedefs.h>

namespace mtgr {

// Null where the driver has none. It is asked of the runtime, which avoids linking libcuda.
PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder();

}  // namespace mtgr
