"""Causal tracing: which hidden states carry a fact from the subject to the answer."""
