"""The decode role: takes memory first, pulls the prompt's KV into it, then decodes in a continuous batch."""
