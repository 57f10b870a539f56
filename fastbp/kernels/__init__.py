"""Compiled code only. Leaves work on raw pointers; `training` holds the entry points."""
