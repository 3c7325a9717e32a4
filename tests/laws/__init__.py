"""Laws that hold for every rule, also for rules of users: one law per file."""
