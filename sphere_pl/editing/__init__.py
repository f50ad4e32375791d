"""One edit batch: what it asks of each matrix, and how that becomes an update."""
