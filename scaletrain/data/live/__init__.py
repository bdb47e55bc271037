"""Text that the datasets library streams, tokenized while a run trains on it."""
