"""Where a matrix goes, the plug-in for Hugging Face PEFT; may import `structures` and `shared`.

Importing it registers the method `SURM`.
"""

import peft
from peft import mapping
from peft.utils import PeftType, register_peft_method

from surm.tuners.adapter import SurmAdapter
from surm.tuners.config import SurmConfig
from surm.tuners.layer import SurmLayer, SurmLinear
from surm.tuners.model import SurmModel
from surm.tuners.trained import conversion_error

__all__ = ["SurmAdapter", "SurmConfig", "SurmLayer", "SurmLinear", "SurmModel", "conversion_error"]


def _register() -> None:
    """Add the member SURM to PEFT's enumeration of methods, which has no other way in, and register the method.

    Works again after a reload.

    Raises:
        ImportError: PEFT has a method of this name that is not ours.
    """
    if "SURM" in PeftType.__members__:
        registered = mapping.PEFT_TYPE_TO_CONFIG_MAPPING.get(PeftType("SURM"))
        if registered is None or registered.__module__ != SurmConfig.__module__:
            raise ImportError(
                f"peft {peft.__version__} has a method called SURM of its own: use that one, or install an older peft."
            )
        for table in ("CONFIG", "TUNER", "PREFIX"):
            getattr(mapping, f"PEFT_TYPE_TO_{table}_MAPPING").pop(PeftType("SURM"))
    else:
        member = str.__new__(PeftType, "SURM")
        member._name_ = member._value_ = "SURM"
        # The attribute goes past the metaclass, which forbids to set members.
        type.__setattr__(PeftType, "SURM", member)
        PeftType._member_names_.append("SURM")
        PeftType._member_map_["SURM"] = PeftType._value2member_map_["SURM"] = member
    register_peft_method(name="surm", config_cls=SurmConfig, model_cls=SurmModel, prefix="surm_")


_register()
