"""What is minimised: every loss there is. To add one, see CONTRIBUTING."""

from iwopd.losses.base import Loss
from iwopd.losses.forward_kl import ForwardKl
from iwopd.losses.jsd import Jsd
from iwopd.losses.policy_gradient import PolicyGradient
from iwopd.losses.reverse_kl import ReverseKl
from iwopd.setting import by_name

# By the name that `loss.kind` has; the schema of loss=NAME is /schema/loss/NAME.
LOSSES: dict[str, type[Loss]] = by_name(
    PolicyGradient,
    ReverseKl,
    ForwardKl,
    Jsd,
)

__all__ = ["LOSSES", "Loss"]
