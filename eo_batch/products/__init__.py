"""What masks mean: boxes, counts, classes, places and sentences. Pure functions on arrays, by RemoteSAM's rules."""
