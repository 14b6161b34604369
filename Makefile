PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
SPACE_VENV ?= .venv-space
SPACE_INSTALLED = $(SPACE_VENV)/.installed

.PHONY: test test-space space lint types demo digits ablation emoji clean

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

clean:
	rm -rf $(VENV) $(SPACE_VENV) build outputs src/*.egg-info
