PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SAMPLE := quickstart
# The base that the quickstart tunes: the shipped one, else random weights, which show the plumbing and nothing more.
BASE   := $(if $(wildcard checkpoints/sam2.1_nano.pt),sam2.1_nano,sam2.1_nano@random)
START  := $(if $(wildcard checkpoints/sam2.1_nano.pt),pretrained,null)
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: help setup dev quickstart test lint types format bench clean

help:            ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

setup: $(VENV)/.installed  ## create .venv with what preparing, training and benchmarking need

# sam2 is published as source and its build imports torch: torch first, then sam2 without its optional CUDA extension.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip "setuptools>=77" wheel
	$(BIN)/python -m pip install -q "torch>=2.6" "torchvision>=0.21"
	SAM2_BUILD_CUDA=0 $(BIN)/python -m pip install -q --no-build-isolation sam2==1.1.0
	$(BIN)/python -m pip install -q --no-build-isolation -e .
	touch $@

dev: $(VENV)/.installed-dev  ## and with what app, server, all benchmarked models, tests and checks need

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[dev,app,serve,benchmark]"
	touch $@

quickstart: setup  ## phantom scans in, fine-tuned checkpoint out, benchmark before and after (minutes, no download)
	$(BIN)/python -m data_prep phantoms --out $(SAMPLE)/raw --cases 16
	$(BIN)/python -m data_prep volumes --images $(SAMPLE)/raw/images --masks $(SAMPLE)/raw/masks --out $(SAMPLE)/data \
	  --modality CT --window 40 400 --image-suffix _0000.nii.gz --split 0.7 0.15 0.15 --group-by $(SAMPLE)/raw/patients.csv:patient
	$(BIN)/python train.py experiment=quickstart data.root=$(SAMPLE)/data model.weights=$(START) hydra.run.dir=$(SAMPLE)/run
	for protocol in paper_2d paper_3d; do $(BIN)/python -m medsam2_ft benchmark --data $(SAMPLE)/data --protocol $$protocol \
	  --models before=$(BASE),after=$(SAMPLE)/run/model.pt --out $(SAMPLE)/$$protocol --limit 3 || exit; done
	@test $(START) != null || echo "The base had random weights: before/after shows that the plumbing works, and claims no gain."
	@echo "reports: $(SAMPLE)/paper_2d/report.html and $(SAMPLE)/paper_3d/report.html    checkpoint: $(SAMPLE)/run/model.pt"

test: dev  ## the tests that need nothing but this machine
	$(BIN)/python -m pytest

lint: dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev  ## mypy, strict
	$(BIN)/mypy

format: dev  ## let ruff format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup  ## speed and memory, side by side with the reference recipe
	$(BIN)/python -m benchmarks

clean:  ## remove what quickstart made; .venv stays
	rm -rf $(SAMPLE)
