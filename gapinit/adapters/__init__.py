"""A direction becomes B: LoRA placement, initialisation, saved adapters, methods."""
