"""Task vectors as goods: how the change of a model is encoded, kept, exchanged and put to use."""
