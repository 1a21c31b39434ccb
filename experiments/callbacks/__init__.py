"""What is told what the server does: the run's folder, its checkpoint, the console, a logger."""
