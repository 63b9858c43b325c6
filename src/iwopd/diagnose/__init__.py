"""Position bias of a student/teacher pair: measured, put in words, drawn, and written as a page."""
