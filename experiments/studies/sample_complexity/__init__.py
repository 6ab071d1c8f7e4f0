"""The study `sample_complexity`: see README.md."""
