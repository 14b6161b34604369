PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
NOTEBOOKS_INSTALLED = $(VENV)/.notebooks-installed
SPACE_VENV ?= .venv-space
SPACE_INSTALLED = $(SPACE_VENV)/.installed

.PHONY: test test-fast test-peers test-space lint types notebooks space demo digits ablation emoji fashion fashion-claims clean test-faults benchmark-gpu

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=10

# Leaves out what takes seconds: 80 seconds on two free cores.
test-fast: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

# transformers' and diffusers' own tests of models and pipelines, from their source distributions: some minutes.
test-peers: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[peers]"
	$(BIN)/python -m tests.peers.fetch
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/peers

# Kills, signals, damage, full disks and wrong values, with tables of them at the end: docs/faults.md. FAULTS=50 tries each
# kind 50 times.
test-faults: $(INSTALLED)
	OMP_NUM_THREADS=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 $(BIN)/python -m pytest -q tests/faults/fault_*.py

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

types: $(INSTALLED)
	$(BIN)/mypy

# Runs the notebooks from top to bottom, and writes their outputs into them.
notebooks: $(NOTEBOOKS_INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.notebooks.run

demo: $(INSTALLED)
	$(BIN)/python -m examples.demo

digits: $(INSTALLED)
	$(BIN)/python -m examples.digits.make

# Twelve small models: about 40 minutes of one slow core.
ablation: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.digits.ablate --tokenizer_name_or_path model_cards/mage-digits \
		--max_train_steps 600 --card model_cards/mage-digits/README.md

# Needs Debian's packages fonts-noto-color-emoji and unicode-data; about two hours of one slow core.
emoji: $(INSTALLED)
	$(BIN)/python -m examples.emoji.make_dataset
	$(BIN)/python scripts/train_vqgan.py --config configs/vqgan_emoji.yaml --dataset_name outputs/emoji
	$(BIN)/python scripts/train_mage.py --config configs/mage_emoji.yaml --dataset_name outputs/emoji
	$(BIN)/python -m examples.compare_representations emoji --dataset_name outputs/emoji \
		--model_name_or_path outputs/mage-emoji --card docs/representations.md

# Needs Debian's package dataset-fashion-mnist: installed, or `make fashion PACKAGE=FILE.deb` (`apt-get download` needs no
# root). About six hours of two slow cores, most of them the model's; interrupted, it continues.
fashion: $(INSTALLED)
	$(BIN)/python -m examples.fashion.make $(if $(PACKAGE),--package $(PACKAGE))

# The paper's claims in small, after `make fashion`: 27 small models, several hours. Interrupted, it continues.
fashion-claims: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m examples.fashion.show_claims --card model_cards/mage-fashion/README.md

# What docs/performance.md says of a GPU, and what it misses, for 80 GB: tables and profiles, also in outputs/benchmark-gpu.md.
GPU_BENCHMARK = $(BIN)/python scripts/benchmark.py --device cuda --dtype bfloat16 --compile --repetitions 3 --profile
benchmark-gpu: $(INSTALLED)
	mkdir -p outputs
	for size in vit-base vit-large; do \
		$(GPU_BENCHMARK) --size $$size --compare plain --workloads generate --batch_size 1; \
		$(GPU_BENCHMARK) --size $$size --compare plain --workloads generate features --batch_size 64; \
		$(GPU_BENCHMARK) --size $$size --compare plain --workloads train train-pixels --batch_size 64; \
		$(GPU_BENCHMARK) --size $$size --workloads features train train-pixels --batch_size 256; \
	done | tee outputs/benchmark-gpu.md
	$(GPU_BENCHMARK) --workloads train-tokenizer --batch_size 16 | tee -a outputs/benchmark-gpu.md

# The page of examples/space; gradio wants an older pillow than the tests run with.
space: $(SPACE_INSTALLED)
	$(SPACE_VENV)/bin/python examples/space/app.py

# In a real browser: needs Debian's packages chromium and chromium-driver.
test-space: $(SPACE_INSTALLED)
	OMP_NUM_THREADS=1 MAGE_SCREENSHOT=docs/space.png $(SPACE_VENV)/bin/python -m pytest tests/hub/test_space_browser.py

$(SPACE_INSTALLED): setup.cfg constraints.txt
	$(PYTHON) -m venv $(SPACE_VENV)
	grep -v "^pillow" constraints.txt > $(SPACE_VENV)/constraints.txt
	$(SPACE_VENV)/bin/python -m pip install --quiet --constraint $(SPACE_VENV)/constraints.txt --editable ".[test,space]"
	touch $@

$(INSTALLED): setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

$(NOTEBOOKS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[notebooks]"
	touch $@

clean:
	rm -rf $(VENV) $(SPACE_VENV) build outputs src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
