"""What is made of a run later: more prompts, other thresholds."""
