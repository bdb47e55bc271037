"""What a run tells: speed, progress, metrics."""
