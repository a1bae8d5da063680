"""What lowers the error of a quantized model without training it; :mod:`.apply` says in which order."""
