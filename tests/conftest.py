import logging
import os

os.environ.setdefault("HYDRA_FULL_ERROR", "1")
os.environ["HALLMARK_PROGRESS"] = "false"
os.environ["WANDB_MODE"] = "offline"

import pytest
import torch

# the suite runs in one process per core (pytest -n 2); more threads than that only wait for each other
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def loggers_speak() -> None:
    """Hydra, run by a test in this process, may have silenced loggers that were there before."""
    logging.disable(logging.NOTSET)
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("hallmark") and isinstance(logger, logging.Logger):
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)
