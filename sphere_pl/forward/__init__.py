"""How the blocks of a model are run fast where gradients are wanted."""
