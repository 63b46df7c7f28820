// Memory of packed weights: many matrices side by side in huge pages. One row of activations reads every weight once, and with
// pages of 4 KiB a fifth to a third of the bandwidth goes to address translation (measured on Zen 3: 13 GB/s against 19).
#pragma once

#include <stddef.h>

#include <memory>

namespace splice::cpu {

// Zeroed, 64-byte aligned; lives as long as the pointer or any other piece of the same chunk does. Null if there is none.
std::shared_ptr<void> weight_memory(size_t bytes);

}  // namespace splice::cpu
