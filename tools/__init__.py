"""What made the project's data and models; needed by nobody who uses them, and not in the wheel."""
