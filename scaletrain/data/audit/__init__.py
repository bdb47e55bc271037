"""Audits: a dataset hashed and counted again, the samples of a run computed again, either decoded for eyes."""
