"""Adapters for other libraries. No other module imports these, so that their libraries are optional."""
