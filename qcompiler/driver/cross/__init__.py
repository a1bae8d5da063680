"""Bundles for machines of another architecture than this one's: their runtime libraries, and running them emulated."""
