"""What is learned: the seam between the engine and the work."""
