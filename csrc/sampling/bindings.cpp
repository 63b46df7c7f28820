// engine._sampling: rows of logits to tokens and log probabilities. Works without the GIL on anything that speaks DLPack on the CPU.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <stdexcept>

#include "draw.h"
#include "logprobs.h"
#include "philox.h"
#include "rules.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace splice::sampling {
namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using Ids = std::vector<uint32_t>;

constexpr int64_t NOTHING_LEFT = -2;

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

void require_known(int64_t id, int64_t size) {
  if (id < 0 || id >= size) throw std::out_of_range("token id " + std::to_string(id) + " is not in the vocabulary");
}

uint64_t random_bits(uint64_t seed, uint64_t choice, uint64_t position, uint64_t purpose) {
  return philox(seed, choice, position, purpose) >> 11;
}

const Passes& passes_for(const std::string& isa) {
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
  if ((isa == "auto" || isa == "avx512") && avx512) return avx512_passes();
  if ((isa == "auto" || isa == "avx2") && __builtin_cpu_supports("avx2")) return avx2_passes();
#endif
  if (isa == "auto" || isa == "portable") return portable_passes();
  throw std::invalid_argument("this machine has no " + isa + ": use auto, avx512, avx2 or portable");
}

// A request's parameters in the form the passes want.
struct Plan {
  Choice choice;
  Rules rules;
  uint64_t seed = 0, number = 0;
  int64_t highest = -1;  // largest token id named

  Plan(double temperature, double min_p, int64_t top_k, double typical_p, double top_p, uint64_t seed_, uint64_t number_,
       std::optional<Ids> allowed, std::vector<Ids> bad, std::vector<std::pair<uint32_t, double>> bias, Ids stopping,
       int64_t min_tokens, double repetition, double frequency, double presence)
      : seed(seed_), number(number_) {
    require(temperature >= 0.0 && min_p >= 0.0 && min_p <= 1.0 && top_k >= 0, "temperature, min_p or top_k out of range");
    require(typical_p > 0.0 && top_p > 0.0 && repetition > 0.0, "typical_p, top_p and repetition must be above 0");
    require(std::isfinite(frequency) && std::isfinite(presence), "penalties must be finite");
    choice = {temperature, min_p, top_k, typical_p, top_p, 0};
    rules = {allowed.has_value(), allowed ? std::move(*allowed) : Ids{}, std::move(bad), std::move(bias), std::move(stopping),
             min_tokens, repetition, frequency, presence};
    const auto name = [this](uint32_t id) { highest = std::max<int64_t>(highest, id); };
    std::for_each(rules.allowed.begin(), rules.allowed.end(), name);
    std::for_each(rules.stopping.begin(), rules.stopping.end(), name);
    for (const auto& [id, value] : rules.bias) {
      require(std::isfinite(value), "a bias must be finite");
      name(id);
    }
    for (const auto& sequence : rules.bad) {
      require(!sequence.empty(), "a bad sequence needs at least one token");
      std::for_each(sequence.begin(), sequence.end(), name);
    }
  }
};

class Sampler {
 public:
  explicit Sampler(const std::string& isa) : passes_(passes_for(isa)) {}

  // The largest of each row, ties to the lowest id; −1 where the row is not usable.
  std::vector<int64_t> argmax(const Matrix& logits) {
    const int64_t rows = static_cast<int64_t>(logits.shape(0)), size = check(logits);
    std::vector<int64_t> best(static_cast<size_t>(rows));
    nb::gil_scoped_release release;
    const Choice greedy{0.0};
    for (int64_t row = 0; row < rows; ++row)
      best[static_cast<size_t>(row)] = splice::sampling::draw(passes_, at(logits, row), size, greedy, memory_);
    return best;
  }

  int64_t draw(const Matrix& logits, int64_t row, const Plan& plan, const nb::list& tokens, int64_t num_prompt) {
    const int64_t size = check(logits), position = static_cast<int64_t>(tokens.size());
    require(row >= 0 && row < static_cast<int64_t>(logits.shape(0)), "row is not in logits");
    if (plan.highest >= 0) require_known(plan.highest, size);
    require(num_prompt >= 0 && num_prompt <= position, "num_prompt must be at most the number of tokens");
    const int64_t generated = position - num_prompt;
    if (plan.rules.reads_tokens()) read(tokens, size);
    nb::gil_scoped_release release;
    const float* own = at(logits, row);
    Choice choice = plan.choice;
    if (choice.temperature > 0.0) choice.random = random_bits(plan.seed, plan.number, static_cast<uint64_t>(position), 0);
    if (!plan.rules.active(generated)) return splice::sampling::draw(passes_, own, size, choice, memory_);
    if (!usable(own, size)) return NOT_FINITE;
    changed_.assign(own, own + size);
    apply(plan.rules, changed_.data(), size, tokens_, num_prompt, generated);
    const int64_t token = splice::sampling::draw(passes_, changed_.data(), size, choice, memory_);
    return token == NOT_FINITE ? NOTHING_LEFT : token;
  }

  // Per row (log probability of its token, rank of it, top ids, their log probabilities), or None where it is not usable.
  nb::list logprobs(const Matrix& logits, const std::vector<uint32_t>& tokens, int64_t num_top) {
    const int64_t rows = static_cast<int64_t>(logits.shape(0)), size = check(logits);
    require(static_cast<int64_t>(tokens.size()) == rows, "one token is needed for each row");
    for (const uint32_t token : tokens) require_known(token, size);
    std::vector<std::optional<Logprobs>> found(static_cast<size_t>(rows));
    {
      nb::gil_scoped_release release;
      for (size_t row = 0; row < found.size(); ++row) {
        Logprobs& one = found[row].emplace();
        if (!splice::sampling::logprobs(passes_, at(logits, static_cast<int64_t>(row)), size, tokens[row], num_top,
                                        memory_.largest.data(), one))
          found[row].reset();
      }
    }
    nb::list out;
    for (auto& one : found) {
      if (one)
        out.append(nb::make_tuple(one->logprob, one->rank, std::move(one->top_ids), std::move(one->top_logprobs)));
      else
        out.append(nb::none());
    }
    return out;
  }

 private:
  // Length of a row, for which room is made.
  int64_t check(const Matrix& logits) {
    const int64_t size = static_cast<int64_t>(logits.shape(1));
    require(size > 0 && size <= MAX_TOKENS, "a row must have 1 to 524288 logits");
    require(size == 1 || logits.stride(1) == 1, "the logits of a row must be contiguous");
    memory_.reserve_row(size);
    return size;
  }

  static const float* at(const Matrix& logits, int64_t row) { return logits.data() + row * logits.stride(0); }

  bool usable(const float* logits, int64_t size) {
    const bool numbers = passes_.maxima(logits, size, memory_.largest.data());
    return numbers && std::isfinite(*std::max_element(memory_.largest.begin(), memory_.largest.end()));
  }

  void read(const nb::list& tokens, int64_t size) {
    const size_t count = tokens.size();
    tokens_.resize(count);
    for (size_t i = 0; i < count; ++i) {
      const long id = PyLong_AsLong(PyList_GET_ITEM(tokens.ptr(), static_cast<Py_ssize_t>(i)));
      if (id == -1 && PyErr_Occurred()) throw nb::python_error();
      require_known(id, size);
      tokens_[i] = static_cast<uint32_t>(id);
    }
  }

  const Passes& passes_;
  Memory memory_;
  std::vector<float> changed_;
  Ids tokens_;
};

}  // namespace
}  // namespace splice::sampling

NB_MODULE(_sampling, m) {
  using namespace splice::sampling;
  m.doc() = "Rows of logits to tokens and log probabilities; see csrc/sampling and engine.sampling.sampler.";
  m.def("uniform", [](uint64_t seed, uint64_t choice, uint64_t position, uint64_t purpose) {
    return static_cast<double>(random_bits(seed, choice, position, purpose)) * 0x1p-53;
  }, "seed"_a, "choice"_a, "position"_a, "purpose"_a);
  m.attr("NOT_FINITE") = NOT_FINITE;
  m.attr("NOTHING_LEFT") = NOTHING_LEFT;
  nb::class_<Plan>(m, "Plan", "A request's parameters, prepared.")
      .def(nb::init<double, double, int64_t, double, double, uint64_t, uint64_t, std::optional<Ids>, std::vector<Ids>,
                    std::vector<std::pair<uint32_t, double>>, Ids, int64_t, double, double, double>(),
           nb::kw_only(), "temperature"_a, "min_p"_a, "top_k"_a, "typical_p"_a, "top_p"_a, "seed"_a, "choice"_a,
           "allowed"_a.none(), "bad"_a, "bias"_a, "stopping"_a, "min_tokens"_a, "repetition"_a, "frequency"_a, "presence"_a);
  nb::class_<Sampler>(m, "Sampler", "One thread's scratch memory on one instruction set. Not thread-safe.")
      .def(nb::init<const std::string&>(), "isa"_a = "auto")
      .def("argmax", &Sampler::argmax, "logits"_a, "Per row: the largest, ties to the lowest id, or NOT_FINITE.")
      .def("draw", &Sampler::draw, "logits"_a, "row"_a, "plan"_a, "tokens"_a, "num_prompt"_a,
           "The token, or NOT_FINITE, or NOTHING_LEFT where the plan's own rules leave none.")
      .def("logprobs", &Sampler::logprobs, "logits"_a, "tokens"_a, "num_top"_a,
           "Per row (log probability of its token, its rank, top ids, their log probabilities), or None where not usable.");
}
