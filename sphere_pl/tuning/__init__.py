"""Settings for the model at hand: by depth and scale at once, then tried out on a few built-in facts."""
