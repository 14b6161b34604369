"""Emoji in colour, from a font."""
