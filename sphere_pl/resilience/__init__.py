"""What lets a run stop anywhere and go on: checkpoints, random states, checks that nothing has changed."""
