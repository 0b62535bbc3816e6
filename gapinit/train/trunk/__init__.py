"""What the frozen layers give, computed once: written, read back, in three modes."""
