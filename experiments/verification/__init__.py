"""Whether published figures hold: runs made again and compared, and folders that others submit."""
