"""Every model of the benchmark behind one small interface; see `adapter.py` for it and `catalogue.py` for the names."""
