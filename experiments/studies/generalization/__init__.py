"""The study `generalization`: see README.md."""
