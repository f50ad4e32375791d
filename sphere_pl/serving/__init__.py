"""Editing a model by hand: a session on a run, a JSON API and a page on top of it."""
