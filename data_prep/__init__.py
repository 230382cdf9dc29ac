"""Raw medical data into npz cases: `python -m data_prep COMMAND`."""
