// The fused norms against float64, and their bandwidth beside that of a device copy.
#pragma once

namespace check {

int check_norms();  // returns the number of failures
void bench_norms();

}  // namespace check
