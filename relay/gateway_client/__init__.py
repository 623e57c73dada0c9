"""Reporting where Redis cannot be reached: through a gateway elsewhere, over `requests`."""
