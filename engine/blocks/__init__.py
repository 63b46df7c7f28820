"""KV memory: the blocks, who holds them, what they contain, what is evicted, and copies between them."""
