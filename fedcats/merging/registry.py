"""Every rule of the package, by name."""

from fedcats.merging.adaptive import FedAdam, FedAvgM
from fedcats.merging.anchored import Scale, Stock
from fedcats.merging.curvature import Fisher, RegMean
from fedcats.merging.heads import ClassMeans, Lda, MeansLda, Ridge
from fedcats.merging.rules import FedAvg, FoldRule, Krum, Median, Polyak, Rule, TrimmedMean, Uniform
from fedcats.merging.sparse import Dare, Half, Int8, Ties

_CLASSES: tuple[type[Rule], ...] = (
    *(Polyak, FedAvg, Uniform, FedAvgM, FedAdam, Median, TrimmedMean, Krum),
    *(Scale, Stock, Fisher, RegMean, Dare, Ties, Half, Int8),
    *(Ridge, Lda, ClassMeans, MeansLda),
)

RULES: dict[str, type[Rule]] = {rule.name: rule for rule in _CLASSES}
"""Every rule of the package, by name."""

FOLDS = tuple(name for name, rule in RULES.items() if issubclass(rule, FoldRule))
"""Those that are a fold."""
