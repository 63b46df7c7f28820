"""Text in, token ids out: tokenizer, chat template, forbidden words. The way back is `wire.text`."""
