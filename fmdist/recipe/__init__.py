"""The machinery of recipes: strict YAML, overrides, collected errors, JSON schema.

Knows no section: the stages own theirs and `fmdist.stages` composes them. Imports the ground floor only.
"""
