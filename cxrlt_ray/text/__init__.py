"""Texts of reports and findings, and their embeddings.

finding_embeddings.py  label embeddings of findings: prompts through a text encoder
"""
