"""What a run is told: the recipe, the architecture and DeepSpeed's JSON. Pure; needs neither torch nor DeepSpeed."""
