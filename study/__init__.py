"""The paper's claims on the default model: cells are run, their results kept, the page built from these alone."""
