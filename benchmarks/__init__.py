"""What is fast against what, and what each porting trap costs; results as JSON."""
