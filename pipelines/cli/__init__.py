"""The command line: from words to a job, and what a person sees."""
