"""Ways to split a labelled data set over clients: one file each (docs/add_a_partition.md)."""
