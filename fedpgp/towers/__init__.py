"""The transformer towers of CLIP with frozen weights: their blocks, attention, CUDA graphs."""
