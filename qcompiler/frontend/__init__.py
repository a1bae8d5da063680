"""Steps 1 and 3: a model becomes an exported program, and an exported program becomes a Relax module."""
