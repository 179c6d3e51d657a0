import os

os.environ.setdefault("HYDRA_FULL_ERROR", "1")
os.environ["HALLMARK_PROGRESS"] = "false"
os.environ["WANDB_MODE"] = "offline"

import torch

# the suite runs in one process per core (pytest -n 2); more threads than that only wait for each other
torch.set_num_threads(1)
