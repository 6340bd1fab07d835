"""Training loops: modules with a function `train(config, workdir)`."""
