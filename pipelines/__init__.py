"""One file per job, and what the jobs share: configuration, the driver, the store, the journal and tracking. The only package that imports Hydra and MLflow."""

import gc

# Importing torch and transformers makes hundreds of thousands of objects that stay. Looking through them again and again as they come would be a
# sixth of what a short command takes. `pipelines.cli.launch` puts it back.
COLLECTION = gc.get_threshold()
gc.set_threshold(100_000, 50, 100)
