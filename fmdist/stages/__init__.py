"""The stages of a model's life: composes the recipe's schema from their sections, and is the Python API.

Every verb of the command line is one function here. Each takes a recipe (a path, a mapping, or a `Recipe`) or
the folder that an earlier verb left. May import everything below; only `fmdist.cli` is above.
"""

from fmdist.stages.analyzing import analyze
from fmdist.stages.compressing import compress, compress_config
from fmdist.stages.life import Life, run
from fmdist.stages.modules import open_module
from fmdist.stages.recipe import Recipe, load_recipe, sections
from fmdist.stages.training import Trained, train
from fmdist.stages.using import evaluate, predict, report

__all__ = [
    "Life",
    "Recipe",
    "Trained",
    "analyze",
    "compress",
    "compress_config",
    "evaluate",
    "load_recipe",
    "open_module",
    "predict",
    "report",
    "run",
    "sections",
    "train",
]
