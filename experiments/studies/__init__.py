"""Studies: a question, a command and a result each. None imports another."""
