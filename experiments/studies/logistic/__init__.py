"""The study `logistic`: see README.md."""
