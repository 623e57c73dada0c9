"""Deployment events, image references and platforms: parsed, normalised and checked; pure."""
