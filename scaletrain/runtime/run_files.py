"""Names of the records in a run's folder, which other programs read too."""

METRICS = "metrics.jsonl"  # a line a logged step or evaluation
EVENTS = "events.jsonl"
PLAN = "plan.json"  # what the run expected of itself before its start
