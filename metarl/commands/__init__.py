"""The commands, a module each: ``prepare`` takes a command line and returns what to execute, or raises ValueError."""
