"""One file per job, and what the jobs share: configuration, the driver, the store, the journal and
tracking. The only package that imports Hydra and MLflow.
"""

import gc
import sys

# Importing torch and transformers makes millions of objects, and nearly all of them stay. Looking
# through them as they come would be a tenth of what a short command takes. "-m" stands there only
# while Python looks for the module of `python -m`.
if sys.argv[:1] == ["-m"]:
    gc.disable()


def all_imported() -> None:
    """From here on garbage is collected; what is there stays."""
    gc.freeze()
    gc.enable()
