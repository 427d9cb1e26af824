"""A bundle or a model on this machine -> what it is worth: placement, latency, memory, accuracy, blame."""
