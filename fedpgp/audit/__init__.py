"""What a federation gives away, measured by attacks on it: bounds of epsilon, membership of images
and clients, classes of a client, image features from an update. No Flower."""
