"""What the server does: strategies for Flower, and the ServerApp that composes them."""
