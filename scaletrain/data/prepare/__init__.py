"""From raw text to a dataset folder: units are read by many processes and joined in order."""
