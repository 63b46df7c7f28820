// engine._native: the C ABI with checked tensors. Arrays are anything that speaks DLPack on the CPU; kernels run without the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>

#include "quant_layout.h"
#include "splice_cpu.h"

namespace nb = nanobind;

namespace {

using splice::cpu::is_quantized;
using splice::cpu::QUANT_DEPTH;

using Array = nb::ndarray<nb::device::cpu>;
using Matrix = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;
using Heads = nb::ndarray<float, nb::ndim<3>, nb::device::cpu>;
using Vector = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Int64s = nb::ndarray<int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Int32s = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

int64_t size(const auto& array, size_t axis) { return static_cast<int64_t>(array.shape(axis)); }

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

int dtype_of(const auto& array, const char* what) {
  const auto dtype = array.dtype();
  if (dtype == nb::dtype<float>()) return SPLICE_CPU_F32;
  const auto code = static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat);
  if (dtype.code == code && dtype.bits == 16) return SPLICE_CPU_BF16;
  throw std::invalid_argument(std::string(what) + " must be float32 or bfloat16");
}

bool contiguous(const auto& array) {
  int64_t expected = 1;
  if (array.size() == 0) return true;
  for (size_t i = array.ndim(); i-- > 0; expected *= size(array, i))
    if (array.shape(i) > 1 && array.stride(i) != expected) return false;
  return true;
}

// Elements from one row to the next, the row itself being contiguous.
int64_t row_stride(const auto& array, const char* what) {
  int64_t expected = 1;
  for (size_t i = array.ndim(); i-- > 1; expected *= size(array, i))
    if (array.shape(i) > 1 && array.stride(i) != expected)
      throw std::invalid_argument(std::string(what) + ": all axes but the first must be contiguous");
  return array.stride(0);
}

void check(int status) {
  if (status == SPLICE_CPU_NO_MEMORY) throw std::bad_alloc();
}

int isa_named(const std::string& name) {
  if (name == "auto") return SPLICE_CPU_ISA_BEST;
  if (name == "avx512") return SPLICE_CPU_ISA_AVX512;
  if (name == "avx2") return SPLICE_CPU_ISA_AVX2;
  if (name == "portable") return SPLICE_CPU_ISA_PORTABLE;
  throw std::invalid_argument("instruction set " + name + " is unknown: use auto, avx512, avx2 or portable");
}

const char* isa_name(int isa) {
  return isa == SPLICE_CPU_ISA_AVX512 ? "avx512" : isa == SPLICE_CPU_ISA_AVX2 ? "avx2" : "portable";
}

using Bytes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

int packed_dtype(const std::string& name) {
  if (name == "float32") return SPLICE_CPU_F32;
  if (name == "bfloat16") return SPLICE_CPU_BF16;
  if (name == "q4_0") return SPLICE_CPU_Q4_0;
  if (name == "q4_1") return SPLICE_CPU_Q4_1;
  if (name == "q8_0") return SPLICE_CPU_Q8_0;
  throw std::invalid_argument("a packed weight is float32, bfloat16, q4_0, q4_1 or q8_0, not " + name);
}

// Owns a packed weight [n, k].
class PackedLinear {
 public:
  PackedLinear(int64_t n, int64_t k, const std::string& dtype) : n_(n), k_(k) {
    require(n > 0 && k >= 0, "a packed weight needs n > 0 and k >= 0");
    dtype_ = packed_dtype(dtype);
    require(!is_quantized(dtype_) || k % QUANT_DEPTH == 0, "a quantised weight needs k to be a multiple of 32");
    bytes_ = splice_cpu_packed_bytes(n, k, dtype_);
    data_.reset(std::aligned_alloc(64, bytes_ ? bytes_ : 64));
    if (!data_) throw std::bad_alloc();
    std::memset(data_.get(), 0, bytes_);
  }

  void load(const Array& weight, int64_t first) {
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
    require(is_quantized(source), "blocks are q4_0, q4_1 or q8_0");
    require(source == dtype_ || dtype_ == SPLICE_CPU_F32, "blocks go into a packed weight of their own type or float32");
    require(k_ % QUANT_DEPTH == 0 && size(blocks, 1) == k_ / QUANT_DEPTH * splice::cpu::quant_file_block_bytes(source),
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
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  int64_t n_, k_;
  int dtype_ = SPLICE_CPU_F32;
  size_t bytes_ = 0;
  std::unique_ptr<void, Free> data_;
};

splice_cpu_kv kv_of(const Array& cache, int64_t layer, int64_t head_dim) {
  require(cache.ndim() == 6 && cache.shape(2) == 2 && contiguous(cache),
          "kv_cache must be contiguous [blocks, layers, 2, kv_heads, block_tokens, head_dim]");
  require(layer >= 0 && layer < size(cache, 1), "layer is not in kv_cache");
  require(size(cache, 5) == head_dim, "head_dim differs between the query and kv_cache");
  require(head_dim <= SPLICE_CPU_MAX_HEAD_DIM, "head_dim is above 1024");
  return {cache.data(), dtype_of(cache, "kv_cache"), size(cache, 1), size(cache, 3), size(cache, 4), size(cache, 5)};
}

class Kernels {
 public:
  Kernels(const std::string& isa, int num_threads) {
    require(num_threads >= 1, "num_threads must be at least 1");
    const int status = splice_cpu_create(isa_named(isa), num_threads, &cpu_);
    if (status == SPLICE_CPU_UNSUPPORTED) throw std::invalid_argument("this machine has no " + isa);
    check(status);
  }
  ~Kernels() { splice_cpu_destroy(cpu_); }
  Kernels(const Kernels&) = delete;
  Kernels& operator=(const Kernels&) = delete;

  const char* isa() const { return isa_name(splice_cpu_isa(cpu_)); }
  int num_threads() const { return splice_cpu_num_threads(cpu_); }
  void set_num_threads(int num_threads) {
    require(num_threads >= 1, "num_threads must be at least 1");
    check(splice_cpu_set_num_threads(cpu_, num_threads));
  }

  void linear(Matrix out, const Matrix& x, const PackedLinear& weight, const std::optional<Vector>& bias) {
    const int64_t m = size(x, 0), n = weight.n(), k = weight.k();
    require(size(x, 1) == k, "x has another number of columns than the weight");
    require(size(out, 0) == m && size(out, 1) == n, "out must be [rows of x, rows of weight]");
    require(!bias || size(*bias, 0) == n, "bias must have one element per row of weight");
    const int64_t out_stride = row_stride(out, "out"), x_stride = row_stride(x, "x");
    nb::gil_scoped_release release;
    check(splice_cpu_linear(cpu_, out.data(), out_stride, x.data(), x_stride, weight.data(), weight.dtype(),
                            bias ? bias->data() : nullptr, m, n, k));
  }

  void rms_norm(Matrix out, const Matrix& x, std::optional<Matrix> residual, const Array& weight, float eps) {
    require(weight.ndim() == 1 && contiguous(weight) && weight.shape(0) == x.shape(1), "weight must be [columns of x]");
    require(out.shape(0) == x.shape(0) && out.shape(1) == x.shape(1) && contiguous(out), "out must be like x, contiguous");
    require(!residual || (residual->shape(0) == x.shape(0) && residual->shape(1) == x.shape(1) && contiguous(*residual)),
            "residual must be like x, contiguous");
    const int dtype = dtype_of(weight, "weight");
    const int64_t x_stride = row_stride(x, "x");
    nb::gil_scoped_release release;
    check(splice_cpu_rms_norm(cpu_, out.data(), x.data(), x_stride, residual ? residual->data() : nullptr, weight.data(),
                              dtype, eps, size(x, 0), size(x, 1)));
  }

  void silu_mul(Matrix out, const Matrix& gate_up) {
    require(out.shape(0) == gate_up.shape(0) && out.shape(1) * 2 == gate_up.shape(1) && contiguous(out),
            "out must be [rows, columns / 2], contiguous");
    const int64_t stride = row_stride(gate_up, "gate_up");
    nb::gil_scoped_release release;
    check(splice_cpu_silu_mul(cpu_, out.data(), gate_up.data(), stride, size(out, 0), size(out, 1)));
  }

  void rope_and_store(Heads out, const Heads& q, const Heads& k, const Heads& v, const Int64s& positions,
                      const Matrix& cos_sin, const Array& kv_cache, int64_t layer, const Int64s& slots) {
    const int64_t tokens = size(q, 0);
    const splice_cpu_kv kv = kv_of(kv_cache, layer, size(q, 2));
    require(contiguous(out) && out.shape(0) == q.shape(0) && out.shape(1) == q.shape(1) && out.shape(2) == q.shape(2),
            "out must be like q, contiguous");
    for (const Heads* one : {&k, &v})
      require(size(*one, 0) == tokens && size(*one, 1) == kv.kv_heads && size(*one, 2) == kv.head_dim,
              "k and v must be [tokens, kv_heads, head_dim]");
    require(size(positions, 0) == tokens && size(slots, 0) == tokens, "positions and slots must have one entry per token");
    require(contiguous(cos_sin) && size(cos_sin, 1) <= kv.head_dim && size(cos_sin, 1) % 2 == 0,
            "cos_sin must be contiguous [positions, rotary_dim], rotary_dim even and at most head_dim");
    for (int64_t i = 0; i < tokens; ++i) {
      require(positions.data()[i] >= 0 && positions.data()[i] < size(cos_sin, 0), "a position is outside cos_sin");
      require(slots.data()[i] < size(kv_cache, 0) * kv.block_tokens, "a slot is outside kv_cache");
    }
    const int64_t q_stride = row_stride(q, "q"), k_stride = row_stride(k, "k"), v_stride = row_stride(v, "v");
    nb::gil_scoped_release release;
    check(splice_cpu_rope_store(cpu_, out.data(), q.data(), q_stride, k.data(), k_stride, v.data(), v_stride,
                                cos_sin.data(), size(cos_sin, 1), positions.data(), slots.data(), tokens, size(q, 1), kv,
                                layer));
  }

  void paged_attention(Heads out, const Heads& q, const Array& kv_cache, int64_t layer, const Table& block_tables,
                       const Int32s& query_starts, const Int32s& starts, float scale) {
    const splice_cpu_kv kv = kv_of(kv_cache, layer, size(q, 2));
    const int64_t sequences = size(starts, 0);
    require(contiguous(out) && out.shape(0) == q.shape(0) && out.shape(1) == q.shape(1) && out.shape(2) == q.shape(2),
            "out must be like q, contiguous");
    require(size(q, 1) % kv.kv_heads == 0, "query heads must be a multiple of KV heads");
    require(size(query_starts, 0) == sequences + 1 && size(block_tables, 0) == sequences,
            "query_starts and block_tables must match starts");
    check_tables(block_tables, query_starts, starts, kv, size(kv_cache, 0), size(q, 0));
    const int64_t q_stride = row_stride(q, "q");
    nb::gil_scoped_release release;
    check(splice_cpu_attention(cpu_, out.data(), q.data(), q_stride, kv, layer, block_tables.data(), size(block_tables, 1),
                               query_starts.data(), starts.data(), sequences, size(q, 1), scale));
  }

 private:
  static void check_tables(const Table& tables, const Int32s& query_starts, const Int32s& starts, const splice_cpu_kv& kv,
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

  splice_cpu* cpu_ = nullptr;
};

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "CPU kernels of the engine: see csrc/cpu/splice_cpu.h.";
  m.def("supported_isas", [] {
    nb::list names;
    for (int isa : {SPLICE_CPU_ISA_AVX512, SPLICE_CPU_ISA_AVX2, SPLICE_CPU_ISA_PORTABLE})
      if (splice_cpu_isa_supported(isa)) names.append(isa_name(isa));
    return names;
  }, "Instruction sets this machine has, best first.");
  nb::class_<PackedLinear>(m, "PackedLinear", "A weight [n, k] re-laid for the kernels.")
      .def(nb::init<int64_t, int64_t, const std::string&>(), nb::arg("n"), nb::arg("k"), nb::arg("dtype"))
      .def("load", &PackedLinear::load, nb::arg("weight"), nb::arg("first") = 0, "Takes rows first, first + 1, ...")
      .def("load_blocks", &PackedLinear::load_blocks, nb::arg("blocks"), nb::arg("dtype"), nb::arg("first") = 0,
           "Takes rows first, first + 1, ... as a GGUF file stores them: uint8 [rows, bytes of a row].")
      .def("rows", &PackedLinear::rows, nb::arg("ids"), nb::arg("out"), "out[i] = row ids[i], float32.")
      .def_prop_ro("n", &PackedLinear::n)
      .def_prop_ro("k", &PackedLinear::k)
      .def_prop_ro("nbytes", &PackedLinear::bytes);
  nb::class_<Kernels>(m, "Kernels", "An instruction set and a pool of threads.")
      .def(nb::init<const std::string&, int>(), nb::arg("isa") = "auto", nb::arg("num_threads") = 1)
      .def_prop_ro("isa", &Kernels::isa)
      .def_prop_rw("num_threads", &Kernels::num_threads, &Kernels::set_num_threads)
      .def("linear", &Kernels::linear, nb::arg("out"), nb::arg("x"), nb::arg("weight"), nb::arg("bias").none())
      .def("rms_norm", &Kernels::rms_norm, nb::arg("out"), nb::arg("x"), nb::arg("residual").none(), nb::arg("weight"),
           nb::arg("eps"))
      .def("silu_mul", &Kernels::silu_mul, nb::arg("out"), nb::arg("gate_up"))
      .def("rope_and_store", &Kernels::rope_and_store, nb::arg("out"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
           nb::arg("positions"), nb::arg("cos_sin"), nb::arg("kv_cache"), nb::arg("layer"), nb::arg("slots"))
      .def("paged_attention", &Kernels::paged_attention, nb::arg("out"), nb::arg("q"), nb::arg("kv_cache"),
           nb::arg("layer"), nb::arg("block_tables"), nb::arg("query_starts"), nb::arg("starts"), nb::arg("scale"));
}
