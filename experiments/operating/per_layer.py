def per_layer(records): raise NotImplementedError
