"""Scripts that run in a sandbox's own interpreter: the standard library, numpy and the provider, nothing of edgeq."""
