// What every class of engine._native shares: checked tensors, packed weights, the view of the paged cache.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "quant_layout.h"
#include "splice_cpu.h"
#include "weight_memory.h"

namespace nb = nanobind;

namespace splice::binding {

using splice::cpu::is_quantized;
using splice::cpu::quant_depth;

using Array = nb::ndarray<nb::device::cpu>;
using ConstArray = nb::ndarray<nb::ro, nb::device::cpu>;
using Matrix = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
using Heads = nb::ndarray<float, nb::ndim<3>, nb::device::cpu>;
using Vector = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Int64s = nb::ndarray<int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Int64Matrix = nb::ndarray<int64_t, nb::ndim<2>, nb::device::cpu>;
using Int32s = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

inline int64_t size(const auto& array, size_t axis) { return static_cast<int64_t>(array.shape(axis)); }

inline void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

inline int dtype_of(const auto& array, const char* what) {
  const auto dtype = array.dtype();
  if (dtype == nb::dtype<float>()) return SPLICE_CPU_F32;
  // numpy has no bfloat16: its bits come as uint16.
  const bool bits_only = dtype == nb::dtype<uint16_t>();
  if (bits_only || (dtype.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat) && dtype.bits == 16))
    return SPLICE_CPU_BF16;
  throw std::invalid_argument(std::string(what) + " must be float32 or bfloat16");
}

inline bool contiguous(const auto& array) {
  int64_t expected = 1;
  if (array.size() == 0) return true;
  for (size_t i = array.ndim(); i-- > 0; expected *= size(array, i))
    if (array.shape(i) > 1 && array.stride(i) != expected) return false;
  return true;
}

// Elements from one row to the next, the row itself being contiguous.
inline int64_t row_stride(const auto& array, const char* what) {
  int64_t expected = 1;
  for (size_t i = array.ndim(); i-- > 1; expected *= size(array, i))
    if (array.shape(i) > 1 && array.stride(i) != expected)
      throw std::invalid_argument(std::string(what) + ": all axes but the first must be contiguous");
  return array.stride(0);
}

inline void check(int status) {
  if (status == SPLICE_CPU_NO_MEMORY) throw std::bad_alloc();
}

using Bytes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Names of packed types, in the order of splice_cpu.h; the quantised ones as GGUF files call them.
constexpr const char* PACKED_NAMES[] = {"float32", "bfloat16", "q4_0", "q4_1", "q5_0", "q5_1",
                                        "q8_0",    "q4_k",     "q5_k", "q6_k", "mxfp4"};
constexpr int PACKED_DTYPES = sizeof PACKED_NAMES / sizeof *PACKED_NAMES;

inline int packed_dtype(const std::string& name) {
  for (int dtype = 0; dtype < PACKED_DTYPES; ++dtype)
    if (name == PACKED_NAMES[dtype]) return dtype;
  throw std::invalid_argument("a packed weight is float32, bfloat16 or a quantised type of GGUF, not " + name);
}

// Owns a packed weight [n, k].
class PackedLinear {
 public:
  PackedLinear(int64_t n, int64_t k, const std::string& dtype) : n_(n), k_(k) {
    require(n > 0 && k >= 0, "a packed weight needs n > 0 and k >= 0");
    dtype_ = packed_dtype(dtype);
    require(!is_quantized(dtype_) || k % quant_depth(dtype_) == 0,
            "a quantised weight needs k to be a multiple of 32, a K-quant of 256");
    bytes_ = splice_cpu_packed_bytes(n, k, dtype_);
    data_ = cpu::weight_memory(bytes_ ? bytes_ : 64);
    if (!data_) throw std::bad_alloc();
  }

  void load(const ConstArray& weight, int64_t first) {
    require(weight.ndim() == 2 && contiguous(weight), "weight must be a contiguous matrix");
    const int64_t rows = size(weight, 0);
    require(size(weight, 1) == k_, "weight has another number of columns than the packed matrix");
    require(first >= 0 && first + rows <= n_, "weight rows do not fit into the packed matrix");
    require(!is_quantized(dtype_), "a quantised weight takes load_blocks");
    const int source = dtype_of(weight, "weight");
    nb::gil_scoped_release release;
    splice_cpu_pack(data_.get(), dtype_, k_, first, rows, weight.data(), source);
  }

  void load_blocks(const Bytes& blocks, const std::string& dtype, int64_t first) {
    const int source = packed_dtype(dtype);
    require(is_quantized(source), "blocks are of a quantised type");
    require(source == dtype_ || dtype_ == SPLICE_CPU_F32, "blocks go into a packed weight of their own type or float32");
    require(k_ % quant_depth(source) == 0 &&
                size(blocks, 1) == k_ / quant_depth(source) * splice::cpu::quant_file_block_bytes(source),
            "a row of blocks has another length than the packed matrix");
    require(first >= 0 && first + size(blocks, 0) <= n_, "weight rows do not fit into the packed matrix");
    nb::gil_scoped_release release;
    splice_cpu_pack(data_.get(), dtype_, k_, first, size(blocks, 0), blocks.data(), source);
  }

  void rows(const Int64s& ids, Matrix out) const {
    require(out.shape(0) == ids.shape(0) && size(out, 1) == k_ && contiguous(out), "out must be [len(ids), k], contiguous");
    for (size_t i = 0; i < ids.shape(0); ++i)
      require(ids.data()[i] >= 0 && ids.data()[i] < n_, "row index out of range");
    splice_cpu_packed_rows(data_.get(), dtype_, k_, ids.data(), size(ids, 0), out.data());
  }

  const void* data() const { return data_.get(); }
  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  size_t bytes() const { return bytes_; }
  int dtype() const { return dtype_; }

 private:
  int64_t n_, k_;
  int dtype_ = SPLICE_CPU_F32;
  size_t bytes_ = 0;
  std::shared_ptr<void> data_;
};

// Planes of 8 bits come with the scales of their tokens: [blocks, layers, 2, kv_heads, block_tokens · (head_dim + 4)], of int8 where
// numbers are that, of uint8 where they are E4M3, which numpy does not have.
inline splice_cpu_kv scaled_kv_of(const Array& cache, int dtype, int64_t layer, int64_t head_dim) {
  require(cache.shape(2) == 2 && contiguous(cache),
          "a kv_cache of 8 bits must be contiguous [blocks, layers, 2, kv_heads, block_tokens · (head_dim + 4)]");
  require(layer >= 0 && layer < size(cache, 1), "layer is not in kv_cache");
  require(head_dim <= SPLICE_CPU_MAX_HEAD_DIM && head_dim % 4 == 0, "head_dim must be a multiple of 4, at most 1024");
  require(size(cache, 4) % (head_dim + 4) == 0, "head_dim differs between the query and kv_cache");
  return {cache.data(), dtype, size(cache, 1), size(cache, 3), size(cache, 4) / (head_dim + 4), head_dim};
}

inline splice_cpu_kv kv_of(const Array& cache, int64_t layer, int64_t head_dim) {
  if (cache.ndim() == 5 && cache.dtype() == nb::dtype<int8_t>()) return scaled_kv_of(cache, SPLICE_CPU_INT8, layer, head_dim);
  if (cache.ndim() == 5 && cache.dtype() == nb::dtype<uint8_t>()) return scaled_kv_of(cache, SPLICE_CPU_FP8, layer, head_dim);
  require(cache.ndim() == 6 && cache.shape(2) == 2 && contiguous(cache),
          "kv_cache must be contiguous [blocks, layers, 2, kv_heads, block_tokens, head_dim]");
  require(layer >= 0 && layer < size(cache, 1), "layer is not in kv_cache");
  require(size(cache, 5) == head_dim, "head_dim differs between the query and kv_cache");
  require(head_dim <= SPLICE_CPU_MAX_HEAD_DIM, "head_dim is above 1024");
  return {cache.data(), dtype_of(cache, "kv_cache"), size(cache, 1), size(cache, 3), size(cache, 4), size(cache, 5)};
}

// One plane of one head: latents.
inline splice_cpu_kv latent_kv_of(const Array& cache, int64_t layer, int64_t width) {
  require(cache.ndim() == 6 && cache.shape(2) == 1 && cache.shape(3) == 1 && contiguous(cache),
          "a kv_cache of latents must be contiguous [blocks, layers, 1, 1, block_tokens, rank + rope]");
  require(layer >= 0 && layer < size(cache, 1), "layer is not in kv_cache");
  require(size(cache, 5) == width && width <= SPLICE_CPU_MAX_HEAD_DIM, "kv_cache has rows of another width, or above 1024");
  return {cache.data(), dtype_of(cache, "kv_cache"), size(cache, 1), 1, size(cache, 4), width};
}

inline void check_tables(const Table& tables, const Int32s& query_starts, const Int32s& starts, const splice_cpu_kv& kv,
                         int64_t blocks, int64_t rows) {
  const int64_t sequences = size(starts, 0), width = size(tables, 1);
  require(query_starts.data()[0] == 0 && query_starts.data()[sequences] == rows, "query_starts must cover the rows of q");
  for (int64_t s = 0; s < sequences; ++s) {
    const int64_t queries = query_starts.data()[s + 1] - query_starts.data()[s];
    require(queries >= 0 && starts.data()[s] >= 0, "query_starts must ascend and starts not be negative");
    const int64_t used = (starts.data()[s] + queries + kv.block_tokens - 1) / kv.block_tokens;
    require(used <= width, "a block table is too short for its sequence");
    for (int64_t b = 0; b < used; ++b) {
      const int32_t block = tables.data()[s * width + b];
      require(block >= 0 && block < blocks, "a block table names a block outside kv_cache");
    }
  }
}

}  // namespace splice::binding
