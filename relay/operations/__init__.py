"""What operators ask for: status, diagnosis, doctor, settings report."""
