"""DeepSpeed: steps, checkpoints and the training loop."""
