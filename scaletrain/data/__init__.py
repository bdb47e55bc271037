"""Tokens: from text to shards, and from shards to batches."""
