"""Labelled examples for fine-tuning: files of many formats, read as what the task learns from. No torch."""
