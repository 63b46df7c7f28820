"""From logits to tokens: drawn one by one, or searched for by beams."""
