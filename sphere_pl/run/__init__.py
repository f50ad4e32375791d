"""Callbacks and loggers that write a run into its folder."""
