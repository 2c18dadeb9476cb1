#pragma once

namespace check {

int check_linears(int cases);  // prints, returns the failures
void bench_linears();

}  // namespace check
