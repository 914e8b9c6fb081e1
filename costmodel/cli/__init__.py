"""The command line. Its modules load click and the standard library only; what they call is loaded when called."""
