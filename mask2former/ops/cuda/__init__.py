"""The CUDA backend of the deformable attention operator."""
