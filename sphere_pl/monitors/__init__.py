"""What watches a run and writes down what it sees: Lightning callbacks and loggers."""
