"""The command line: the call taken apart, and each verb as a few calls of the core."""
