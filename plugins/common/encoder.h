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

// Encodes a contiguous weight [columns, depth] of 16-bit numbers, an operand of products whose
// result leaves from registers. There a lane holds pairs of columns, eight columns from one pair to
// the next ("D fragment" of wgmma in the PTX manual). Boxes take columns in an order that makes a
// lane's pairs neighbours, `vector` columns together: of a box at group g and pair p, row
// (j * groups + i) * 8 + lane * 2 + c is column ((g + i) * 4 + lane) * vector + (p + j) * 2 + c.
// `columns` is a multiple of 4 * vector; rows are 128 bytes, swizzled. False if the driver refuses.
bool encode_weight(CUtensorMap& map, mtgr_dtype dtype, const void* data, int columns, int depth,
                   int vector, int box_groups, int box_pairs);

}  // namespace mtgr
