// What a request changes about a row of logits before a token is chosen from it.
#pragma once

#include <stdint.h>

#include <utility>
#include <vector>

namespace splice::sampling {

struct Rules {
  bool restricted = false;
  std::vector<uint32_t> allowed;                // with `restricted`: no other token can be drawn
  std::vector<std::vector<uint32_t>> bad;       // sequences the answer must not contain
  std::vector<std::pair<uint32_t, double>> bias;  // token, what is added
  std::vector<uint32_t> stopping;               // not drawn before min_tokens
  int64_t min_tokens = 0;
  double repetition = 1.0, frequency = 0.0, presence = 0.0;

  bool penalises() const { return repetition != 1.0 || frequency != 0.0 || presence != 0.0; }
  // Whether the tokens themselves are looked at, beside their number.
  bool reads_tokens() const { return penalises() || !bad.empty(); }
  // Whether a row changes at all once `generated` tokens are there.
  bool active(int64_t generated) const {
    return restricted || !bad.empty() || !bias.empty() || penalises() || generated < min_tokens;
  }
};

// Changes `logits` `[size]` in this order: allowed, bad, bias, stopping tokens, repetition, frequency and presence. Each logit is
// computed in double and rounded to float after the bias and after the penalties. `tokens` is the prompt, its first `num_prompt`,
// and the answer so far (empty where the rules do not read them); all ids are below `size`.
void apply(const Rules& rules, float* logits, int64_t size, const std::vector<uint32_t>& tokens, int64_t num_prompt,
           int64_t generated);

}  // namespace splice::sampling
