"""Processes on one machine or many: ranks, signals, logs."""
