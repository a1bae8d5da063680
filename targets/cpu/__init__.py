"""What the families of processors share: extents, activations in memory, kernels that map and move bytes."""
