"""The ways KV bytes can travel; each keeps the contract of `kvtransfer.transport`."""
