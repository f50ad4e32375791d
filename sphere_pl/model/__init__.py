"""A pretrained language model: loading, taking apart, tokens, decoding."""
