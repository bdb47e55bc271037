"""Measurements against other tools, and the real data that they and the recipes use."""
