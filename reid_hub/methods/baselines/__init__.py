"""What weight chains are compared with: weight selection, KD++ and DepGraph."""

from reid_hub.methods.baselines.depgraph import prune_to
from reid_hub.methods.baselines.kdpp import KDPPMethod, class_means
from reid_hub.methods.baselines.sparsity import SparsityLearning
from reid_hub.methods.baselines.weight_selection import reestimate_statistics, select_weights

__all__ = ["KDPPMethod", "SparsityLearning", "class_means", "prune_to", "reestimate_statistics", "select_weights"]
