"""Words: encoders of text and their stored embeddings, what reports say, descriptions of findings and prompts."""
