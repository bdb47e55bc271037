"""A page that explains runs after they are done: curves, events, differences; one file, no network."""
