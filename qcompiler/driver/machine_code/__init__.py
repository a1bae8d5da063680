"""What is in a linked library: its kernels, their functions, and the instructions of these."""
