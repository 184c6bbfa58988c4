"""Structured unrestricted-rank matrices for parameter-efficient fine-tuning (arXiv 2406.17740).

Importing this package registers the method `SURM` with Hugging Face PEFT; a process that loads a saved adapter must
import it first.
"""

from surm.tuners import SurmConfig, SurmModel

__version__ = "0.1.0"
__all__ = ["SurmConfig", "SurmModel", "__version__"]
