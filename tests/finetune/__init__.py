"""Fine-tuning: from examples to scores."""
