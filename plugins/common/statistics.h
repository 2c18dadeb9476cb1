// Statistics of rows that are going to be normalised: of each 32 columns, so that whoever writes a
// part of a row can write them, and whoever reads the row needs no pass over it.
#pragma once

namespace mtgr {

constexpr int kStatisticsColumns = 32;

struct Statistics {
  float mean, squares;  // of the values in 16 bits; the sum of squared deviations from the mean
};

}  // namespace mtgr
