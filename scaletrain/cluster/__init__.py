"""How this process was launched."""
