"""Editing from Python with the settings of the command line: `sphere_pl.edit`."""
