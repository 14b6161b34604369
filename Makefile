PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
NOTEBOOKS_INSTALLED = $(VENV)/.notebooks-installed

.PHONY: test test-fast lint types notebooks demo digits ablation emoji fashion clean

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=10

# What takes seconds: under 90 s on two free cores.
test-fast: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

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
# root). Several hours of two slow cores; interrupted, it continues.
fashion: $(INSTALLED)
	$(BIN)/python -m examples.fashion.make $(if $(PACKAGE),--package $(PACKAGE))

$(INSTALLED): setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

$(NOTEBOOKS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[notebooks]"
	touch $@

clean:
	rm -rf $(VENV) build outputs src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
