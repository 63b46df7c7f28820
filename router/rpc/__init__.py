"""The gRPC front door: splice.v1.Inference with health and reflection; same validator, same service as HTTP."""
