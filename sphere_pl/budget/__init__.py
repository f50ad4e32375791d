"""What a run needs of memory, and how it stays within what there is."""
