"""One image from end to end: asked, cut, answered, kept."""
