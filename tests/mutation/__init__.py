"""Small harmful changes to the code, each of which a test must see. `make mutants` runs them."""
