"""Task plugins beyond control, and adapters to other suites."""
