"""Losses that recovery can minimise.

To add one, register a `RecoveryLoss`, here or in a script, and name it in `recovery.loss`. Its weight is
`recovery.distillation`; the next-token loss has the rest.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from darwinlm.runtime.registry import Extension, Extensions

if TYPE_CHECKING:
    from torch import Tensor


class RecoveryLoss(Extension):
    """A term of the training loss; its fields are its settings.

    Attributes:
        dense: Whether it compares with the dense model, which the training then loads, rather than with the text.
    """

    dense: ClassVar[bool] = True

    @abstractmethod
    def summed(self, logits: Tensor, reference: Tensor) -> Tensor:
        """The sum over tokens, a differentiable float32 scalar.

        Args:
            logits: [n, v] floating, of the trained model.
            reference: The dense model's logits, [n, v] floating; of a loss that isn't `dense` the next tokens, [n]
                int64, of which -1 is to be skipped.
        """


RECOVERY_LOSSES = Extensions(RecoveryLoss, "recovery loss", "recovery.loss")
"""Losses by their names for `recovery.loss`."""


@RECOVERY_LOSSES.register("forward_kl")
class ForwardKL(RecoveryLoss):
    """KL(dense ‖ model)."""

    def summed(self, logits: Tensor, reference: Tensor) -> Tensor:
        """See `RecoveryLoss.summed`."""
        from darwinlm.steps.recover.losses import forward_kl

        return forward_kl(logits, reference)


@RECOVERY_LOSSES.register("next_token")
class NextToken(RecoveryLoss):
    """Cross-entropy of the next token."""

    dense = False

    def summed(self, logits: Tensor, reference: Tensor) -> Tensor:
        """See `RecoveryLoss.summed`."""
        from darwinlm.steps.recover.losses import next_token_loss

        return next_token_loss(logits, reference)
