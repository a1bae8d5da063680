"""The pipeline from a model to a bundle."""
