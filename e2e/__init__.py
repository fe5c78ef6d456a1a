"""shimlan with the programs that really call it: container runtimes and Kubernetes. How to run it: docs/testing.md."""
