"""What a recipe needs before it runs: memory, bytes sent, time, money. Formulas only; no torch."""
