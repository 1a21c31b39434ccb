"""The client side: the Flower ClientApp, the wire format it shares with the server, and each
client's private state."""
