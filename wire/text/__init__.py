"""From token ids to the text of an answer: what a router streams, and what ends a beam on a worker, read alike."""
