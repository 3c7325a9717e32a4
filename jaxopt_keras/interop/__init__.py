"""Bridges to other libraries. Each module imports its library only when used; nothing in the package imports these."""
