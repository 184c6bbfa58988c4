import pytest


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory, monkeypatch):
    """Nothing that these tests read or resize stays in the user's caches."""
    import datasets

    caches = tmp_path_factory.mktemp("caches")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", caches / "datasets")
    monkeypatch.setenv("SURM_CACHE", str(caches / "surm"))
