"""What is done around training and scoring: the network's form, buffers, pictures, how far and how fast it goes."""
