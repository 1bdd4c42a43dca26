"""How a live model is asked: one module an engine, imported only when it is used."""
