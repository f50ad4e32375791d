"""The paper's claims on the default model: cells are run, their results kept, docs/study.md built from these alone."""
