"""Keep libraries' own progress bars and notices off the screen: the run says what there is to say."""

from __future__ import annotations

import os
import warnings


def quiet_libraries() -> None:
    """Call before the libraries are imported; the command line's business, never the package's."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
