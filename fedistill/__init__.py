"""fedistill: federated dataset distillation on Flower, PyTorch and MLflow.

Start reading at `pipeline.py`: the whole method, config to result, in one process.
"""

__version__ = "0.1.0"
