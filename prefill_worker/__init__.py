"""The prefill role: computes prompts, draws first tokens, holds the KV under a lease until decode has pulled it."""
