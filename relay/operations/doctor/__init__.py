"""Checks of `relay doctor`: one file for each thing that is checked, reading apart from deciding."""
