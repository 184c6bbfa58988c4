"""The tests of PEFT that SURM need not pass, by name and form, with the reason; at most five."""

_OWN_SITES = "Where adapters go by default is our own table, not LoRA's, which lists projections."

EXCEPTIONS: dict[tuple[str, str], str] = {
    ("test_custom_models::test_default_target_modules_list_of_str", "adapter"): _OWN_SITES,
    ("test_custom_models::test_default_target_modules_str", "adapter"): _OWN_SITES,
}
