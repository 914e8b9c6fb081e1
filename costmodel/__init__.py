"""Analytic cost model of token mixing: what a long context costs, how to spread it, and how sure that is."""

__version__ = "0.1.0"
