"""General abilities of a language model: what editing must not break."""
