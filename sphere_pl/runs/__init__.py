"""What can be done with a run after it: rebuild its weights, take edits out, export, compare, score, ask."""
