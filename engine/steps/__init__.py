"""One step as data: the batch that is handed to a model, as arrays and tensors, and what came of it."""
