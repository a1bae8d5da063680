"""Mixed precision: which layers are computed in integers, from what they cost in accuracy and in time."""
