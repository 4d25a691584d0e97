"""fedistill: federated dataset distillation on Flower, PyTorch and MLflow.

Start reading at `pipeline.py`: the whole method, config to result, in one process.
"""

import os

# Large tensors in pages of 2 MB, where Linux gives them to who asks: with pages of 4 kB, to map and
# zero them was a quarter of the training of a ConvNet of 64 filters. PyTorch reads this when it
# first allocates (c10/core/impl/alloc_cpu.cpp).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
