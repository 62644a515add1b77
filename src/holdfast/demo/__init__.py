"""The tiny world: tasks a program can judge, small enough to align in two minutes on a laptop."""
