"""Handwritten digits of 8 x 8 pixels, from scikit-learn."""
