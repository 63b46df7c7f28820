// What compiled models point into: packed weights and vectors, checked and kept alive.
#pragma once

#include <nanobind/stl/optional.h>

#include <optional>
#include <vector>

#include "binding_types.h"
#include "decoder.h"

namespace splice::binding {

class Weights {
 public:
  // A packed weight, or several stacked by rows.
  splice_cpu_matrix matrix(const nb::object& weight, const std::optional<Vector>& bias) {
    splice_cpu_matrix out{};
    const auto add = [&](nb::handle one) { add_part(out, *nb::cast<const PackedLinear*>(one)); };
    if (nb::isinstance<nb::tuple>(weight))
      for (nb::handle part : weight) add(part);
    else
      add(weight);
    require(out.num_parts > 0, "a matrix needs a part");
    owned_.push_back(weight);
    out.bias = vector(bias, out.n);
    return out;
  }

  // `count` matrices [n, k], each beginning on a panel of the packed weight, or weights, that hold them one after another.
  splice_cpu_stack stack(const nb::object& weight, const std::optional<Matrix>& bias, int64_t count, int64_t n) {
    splice_cpu_stack out{};
    const int64_t parts = nb::isinstance<nb::tuple>(weight) ? static_cast<int64_t>(nb::len(weight)) : 1;
    require(parts > 0 && n % parts == 0, "a stack has one part or several of one height");
    const auto add = [&](nb::handle one) {
      const auto* packed = nb::cast<const PackedLinear*>(one);
      const int64_t rows = n / parts, padded = (rows + SPLICE_CPU_PANEL - 1) / SPLICE_CPU_PANEL * SPLICE_CPU_PANEL;
      require(packed->n() == count * padded, "a stack has another number of rows than its matrices take");
      add_part(out.first, *packed);
      out.bytes[out.first.num_parts - 1] = packed->bytes() / static_cast<size_t>(count);
      out.first.parts[out.first.num_parts - 1].n = rows;
    };
    if (nb::isinstance<nb::tuple>(weight))
      for (nb::handle part : weight) add(part);
    else
      add(weight);
    out.first.n = n;
    owned_.push_back(weight);
    if (bias) {
      require(size(*bias, 0) == count && size(*bias, 1) == n && contiguous(*bias), "biases of a stack have the wrong shape");
      matrices_.push_back(*bias);
      out.first.bias = bias->data();
    }
    return out;
  }

  const float* vector(const std::optional<Vector>& values, int64_t wanted) {
    return values ? vector(*values, wanted) : nullptr;
  }
  const float* vector(const Vector& values, int64_t wanted) {
    require(size(values, 0) == wanted, "a norm or bias has the wrong length");
    vectors_.push_back(values);
    return values.data();
  }
  const float* table(const Matrix& values) {
    matrices_.push_back(values);
    return values.data();
  }
  void keep(const nb::object& object) { owned_.push_back(object); }

 private:
  static void add_part(splice_cpu_matrix& out, const PackedLinear& packed) {
    require(out.num_parts < SPLICE_CPU_MAX_PARTS, "a matrix has at most 3 parts");
    require(out.num_parts == 0 || packed.k() == out.k, "parts of a matrix differ in their columns");
    out.parts[out.num_parts++] = {packed.data(), packed.dtype(), packed.n()};
    out.n += packed.n();
    out.k = packed.k();
  }

  std::vector<nb::object> owned_;
  std::vector<Vector> vectors_;
  std::vector<Matrix> matrices_;
};

}  // namespace splice::binding
