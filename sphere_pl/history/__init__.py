"""What a run changed: its log, and what is rebuilt, replayed and read from it."""
