"""The study `bad_workers`: see README.md."""
