"""The comparison of two request bodies by what the prefix cache can share between them: `locallab doctor --cache`."""

from locallab.cli.doctor.cache.comparison import Comparison, compare
from locallab.cli.doctor.cache.prompts import PATHS, VocabularyModel, path_of, refusal

__all__ = ["PATHS", "Comparison", "VocabularyModel", "compare", "path_of", "refusal"]
