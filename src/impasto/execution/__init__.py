"""How a base is run: memory estimate, quantization, offload, gradient checkpointing, compile."""
