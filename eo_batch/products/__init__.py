"""What masks mean: boxes, counts, classes, places and sentences, by the rules that RemoteSAM unifies. Pure functions on arrays."""
