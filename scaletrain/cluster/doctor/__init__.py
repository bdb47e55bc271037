"""Looks at the machines of a run before the run does."""
