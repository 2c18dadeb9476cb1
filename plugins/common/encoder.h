// The driver's encoder of tensor maps, which bulk tensor copies read.
#pragma once

#include <cudaTypedefs.h>

#include <cstdint>

#include "mtgr_ops.h"

namespace mtgr {

// Null where the driver has none. It is asked of the runtime, which avoids linking libcuda.
PFN_cuTensorMapEncodeTiled_v12000 tensor_map_encoder();

// Encodes a [rows, columns] view of 16-bit numbers, `stride` elements from row to row, for boxes
// whose rows are 128 bytes, swizzled; false if the driver refuses.
bool encode_rows(CUtensorMap& map, mtgr_dtype dtype, const void* data, int rows, int columns,
                 int64_t stride, int box_rows);

}  // namespace mtgr
