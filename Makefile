# For newcomers: `make run` trains, evaluates and draws a small model; `make web` serves a page to drop images on,
# with that model or MODEL; `make test` checks everything.
PYTHON ?= python3
SEED ?= 1
# Config keys and values after the run's own, for example TRAIN_OPTS="TEST.EXPECTED_RESULTS \"[['panoptic_seg','PQ',75,25]]\""
TRAIN_OPTS ?=
RUN_DIR ?= output/shapes
# For web: a checkpoint or the name of a published model; by default what `make run` trained
MODEL ?=
# For test-detectron2: a checkout of github.com/facebookresearch/Mask2Former, whose scripts and configs are tested too
PUBLIC ?=
RUN_CONFIG := shapes/panoptic-segmentation/maskformer2_R18_bs8_shapes.yaml
BIN := .venv/bin
SOURCES := mask2former train_net.py demo datasets benchmarks scripts tests setup.py

.PHONY: run web test test-detectron2 lint clean

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# What running needs
.venv/.installed: pyproject.toml setup.py constraints.txt $(wildcard mask2former/ops/csrc/*)
	@echo "setting up .venv: takes a minute or two"
	$(PYTHON) -m venv .venv
	$(INSTALL) -e .
	touch $@

# What the checks need besides
.venv/.test-extras: .venv/.installed
	$(INSTALL) -e '.[dev]'
	touch $@

run: export DETECTRON2_DATASETS := $(CURDIR)/datasets
run: .venv/.installed
	$(BIN)/python datasets/prepare_shapes.py --root datasets
	rm -rf "$(RUN_DIR)"
	$(BIN)/python train_net.py --config-file $(RUN_CONFIG) SEED $(SEED) OUTPUT_DIR "$(RUN_DIR)" $(TRAIN_OPTS)
	for task in semantic instance panoptic; do \
		$(BIN)/python demo/demo.py --task $$task \
			--input datasets/shapes/val/00000[1-8].jpg \
			--output "$(RUN_DIR)/images/$$task" --opts MODEL.WEIGHTS "$(RUN_DIR)/model_final.pth" || exit 1; \
	done

.venv/.web-extra: .venv/.installed
	$(INSTALL) -e '.[web]'
	touch $@

web: export DETECTRON2_DATASETS := $(CURDIR)/datasets
web: .venv/.web-extra
	$(BIN)/mask2former web $(MODEL)

lint: .venv/.test-extras
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell $(SOURCES) docs README.md CONTRIBUTING.md

# A test that hangs ends its process (pyproject.toml); pytest-xdist 3.8 then waits for ever if it may start another
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

# In an environment with Detectron2: see docs/detectron2.md
test-detectron2: export PYTHONPATH := $(CURDIR)
test-detectron2: export MASK2FORMER_PUBLIC := $(abspath $(PUBLIC))
test-detectron2:
	$(PYTHON) -c "import torch, torchvision, detectron2; print(torch.__version__, torchvision.__version__, detectron2.__version__)"
	@test -n "$(PUBLIC)" || echo "without PUBLIC=FOLDER the public project's own scripts and configs are not tested"
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -v tests/detectron2_host $(if $(PUBLIC),,--ignore-glob='*/test_public_*')

clean:
	rm -rf .venv build dist *.egg-info output mask2former/ops/_cpu.so mask2former/ops/_cuda.fatbin
