"""Proof of profiles: small models for every promise, the rules of the documents, and what was found.

``edgeq.pipeline.check`` runs them; nothing here knows the stages.
"""
