"""The OpenAI-compatible front door, pure ASGI: nothing between a client's disconnect and the work it cancels."""
