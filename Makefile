PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed

.PHONY: test lint types demo digits ablation emoji clean

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --durations=10

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

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

$(INSTALLED): setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build outputs src/*.egg-info
