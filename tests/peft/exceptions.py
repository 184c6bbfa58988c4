"""The tests of PEFT that SURM need not pass, with the reason; by rows and form or variant; at most five."""

_OWN_SITES = "Where adapters go by default is our own table, not LoRA's, which lists projections."
_DEAD_UNITS = "The diagonal of a 2 x 10 weight reads two features, which are 0 in this model: no gradient."

EXCEPTIONS: dict[tuple[str, str], str] = {
    ("test_custom_models::test_default_target_modules_list_of_str*", "adapter"): _OWN_SITES,
    ("test_custom_models::test_default_target_modules_str*", "adapter"): _OWN_SITES,
    ("test_custom_models::test_only_params_are_updated*Conv3d 2 *", "diagonal/weight"): _DEAD_UNITS,
}
