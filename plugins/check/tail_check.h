// The end of a layer in one launch against float64, and its time beside that of its parts.
#pragma once

namespace check {

int check_tails(int cases);  // returns the number of failures
void bench_tails();

}  // namespace check
