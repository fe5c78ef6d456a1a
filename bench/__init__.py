"""`python -m bench`: shimlan beside the reference plugins, whole processes, in one run. A program, not a test."""
