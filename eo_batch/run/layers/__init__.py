"""What is made of a finished run: boxes and zones."""
