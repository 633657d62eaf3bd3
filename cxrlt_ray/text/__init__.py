"""Texts to learn from: what reports say, descriptions of findings, and what encoders make of them."""
