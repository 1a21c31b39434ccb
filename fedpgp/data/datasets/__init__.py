"""Data sets, a file each; a file registers what it reads."""
