"""The loops, one page each: `train(config, workdir)`."""
