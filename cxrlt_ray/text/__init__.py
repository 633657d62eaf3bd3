"""Words to learn from and to ask by: encoders, reports as texts, descriptions, prompts, folds of findings."""
