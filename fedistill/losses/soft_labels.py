"""How a student learns from a teacher's logits."""

import torch.nn.functional as F
from torch import Tensor


def soft_kl(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL divergence of the softened student from the softened teacher, mean over the batch.

    KL(softmax(z_T / T) || softmax(z_S / T)), without the factor T^2 of Hinton et al.: as in
    SRe2L's and RDED's code. With AdamW the factor only rescales the gradient.

    Args:
        logits: student's, [B, C].
        teacher_logits: [B, C].
        temperature: T.
    """
    return F.kl_div(
        F.log_softmax(logits / temperature, dim=1),
        F.log_softmax(teacher_logits / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Cross-entropy with soft labels, mean over the batch; DB Eq. 7 and 10.

    Args:
        logits: student's, [B, C].
        probabilities: rows sum to 1, [B, C].
    """
    return -(probabilities * F.log_softmax(logits, dim=1)).sum(1).mean()


def logit_mse(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean squared difference of logits; G-VBSM's and EDC's student loss."""
    return F.mse_loss(logits, teacher_logits)
