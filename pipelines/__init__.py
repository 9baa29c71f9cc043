"""One file per job, and what the jobs share: configuration, the driver, the store, the journal and tracking. The only package that imports Hydra and MLflow."""
