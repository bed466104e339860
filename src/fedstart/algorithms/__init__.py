"""Federated methods, one per file. A file's name is the class's, the command line's and the test's."""
