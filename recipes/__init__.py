"""Worked examples, and how the bundled model is made."""
