"""How much each token of a response counts: every scheme there is. To add one, see CONTRIBUTING."""

from iwopd.setting import by_name
from iwopd.weighting.base import Weighting
from iwopd.weighting.custom import Custom
from iwopd.weighting.fire import Fire
from iwopd.weighting.first_k import FirstK
from iwopd.weighting.fixed_negative import FixedNegative
from iwopd.weighting.iw import Iw
from iwopd.weighting.iw_reversed import IwReversed
from iwopd.weighting.iw_signed import IwSigned
from iwopd.weighting.iw_surrogate import IwSurrogate
from iwopd.weighting.prefix_boost import PrefixBoost
from iwopd.weighting.prefix_mask import PrefixMask
from iwopd.weighting.prefix_ratio import PrefixRatio
from iwopd.weighting.pw import Pw
from iwopd.weighting.renio import Renio
from iwopd.weighting.uniform import Uniform
from iwopd.weighting.window import Window

# By the name that `weighting.scheme` has; the schema of weighting=NAME is /schema/weighting/SCHEME.
SCHEMES: dict[str, type[Weighting]] = by_name(
    Uniform,
    Window,
    Iw,
    IwSigned,
    IwReversed,
    IwSurrogate,
    PrefixRatio,
    PrefixMask,
    PrefixBoost,
    Pw,
    FirstK,
    Renio,
    Fire,
    FixedNegative,
    Custom,
)

__all__ = ["SCHEMES", "Weighting"]
