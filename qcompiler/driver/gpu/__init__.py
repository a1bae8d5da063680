"""Code for GPUs, compiled ahead of time and embedded in a library; its instructions, counted."""
