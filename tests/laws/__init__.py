"""What holds for every rule, whoever wrote it: one law per file."""
