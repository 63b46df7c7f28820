#include "rules.h"

#include <algorithm>
#include <limits>

namespace splice::sampling {

namespace {

constexpr float NEVER = -std::numeric_limits<float>::infinity();

void allow_only(const std::vector<uint32_t>& allowed, float* logits, int64_t size) {
  std::vector<float> kept(allowed.size());
  for (size_t i = 0; i < allowed.size(); ++i) kept[i] = logits[allowed[i]];
  std::fill(logits, logits + size, NEVER);
  for (size_t i = 0; i < allowed.size(); ++i) logits[allowed[i]] = kept[i];
}

// The last token of each sequence whose others are what the answer ends with.
void forbid_completions(const std::vector<std::vector<uint32_t>>& bad, float* logits, const std::vector<uint32_t>& tokens,
                        int64_t num_prompt) {
  for (const auto& sequence : bad) {
    const auto begun = static_cast<int64_t>(sequence.size()) - 1;
    if (static_cast<int64_t>(tokens.size()) - num_prompt < begun) continue;
    if (std::equal(sequence.begin(), sequence.end() - 1, tokens.end() - begun)) logits[sequence.back()] = NEVER;
  }
}

// Repetition as in CTRL (arXiv 1909.05858), over prompt and answer: positive logits are divided by it, negative ones multiplied. Then,
// over the answer, frequency × count and presence are subtracted.
void penalise(const Rules& rules, float* logits, int64_t size, const std::vector<uint32_t>& tokens, int64_t num_prompt) {
  thread_local std::vector<uint32_t> counts;  // of the answer, plus SEEN for every token that occurs at all; zero between calls
  constexpr uint32_t SEEN = 1u << 31;
  if (counts.size() < static_cast<size_t>(size)) counts.resize(static_cast<size_t>(size), 0);
  for (size_t i = 0; i < tokens.size(); ++i) {
    counts[tokens[i]] |= SEEN;
    counts[tokens[i]] += static_cast<int64_t>(i) >= num_prompt;
  }
  for (const uint32_t token : tokens) {
    const uint32_t entry = counts[token];
    if (!entry) continue;
    counts[token] = 0;
    double logit = logits[token];
    logit = logit > 0.0 ? logit / rules.repetition : logit * rules.repetition;
    if (const uint32_t count = entry & ~SEEN) logit -= rules.frequency * count + rules.presence;
    logits[token] = static_cast<float>(logit);
  }
}

}  // namespace

void apply(const Rules& rules, float* logits, int64_t size, const std::vector<uint32_t>& tokens, int64_t num_prompt,
           int64_t generated) {
  if (rules.restricted) allow_only(rules.allowed, logits, size);
  forbid_completions(rules.bad, logits, tokens, num_prompt);
  for (const auto& [token, value] : rules.bias) logits[token] = static_cast<float>(logits[token] + value);
  if (generated < rules.min_tokens)
    for (const uint32_t token : rules.stopping) logits[token] = NEVER;
  if (rules.penalises()) penalise(rules, logits, size, tokens, num_prompt);
}

}  // namespace splice::sampling
