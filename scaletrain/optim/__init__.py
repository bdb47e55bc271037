"""Which parameters are decayed, and the learning rate at a step."""
