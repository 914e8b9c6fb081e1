"""Hardware profiles fitted to measured kernels and collectives, with the errors of the fit."""
