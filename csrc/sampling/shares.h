// The mass of every token of a row, and what filters leave of it: for filters that must look at the whole row anyway. No token is
// listed and none sorted, but for the few at the edge of what a filter keeps.
#pragma once

#include <stdint.h>

#include "candidates.h"
#include "memory.h"

namespace splice::sampling {

class Shares {
 public:
  Shares(const Row& row, double temperature, Memory& memory);

  // Those whose surprise −ln p is nearest to the expected one (arXiv 2202.00666). With p = e^z / W the distance is |z − E[z]|.
  // First, if at all.
  void keep_typical(double share);
  // The fewest likeliest whose share is reached (nucleus sampling, arXiv 1904.09751).
  void keep_top(double share);
  // The token at `random` / 2^53 of what is left, laid end to end in ascending id.
  int64_t at(uint64_t random) const;

 private:
  void keep(const Order& order, uint64_t target);
  double key_of(const Order& order, uint32_t id) const;
  // A z so low that all tokens below it together are less than what a share may leave.
  double depth_of(double share, double weight) const;

  const Row& row_;
  const double temperature_;
  Memory& memory_;
  uint64_t total_ = 0;  // 0: nothing measured yet
};

// The units that make up a share.
uint64_t share_of(double share, uint64_t total);
// Where in `total` the draw is, rounded down: below it.
uint64_t scaled(uint64_t random, uint64_t total);
// As the passes compute it.
double exponent(float logit, Scale scale);

}  // namespace splice::sampling
