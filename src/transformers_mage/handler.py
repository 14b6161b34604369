"""Serves a model's folder on Inference Endpoints."""
