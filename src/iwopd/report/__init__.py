"""Statistics and figures of studies and diagnoses, and the HTML they stand in."""
