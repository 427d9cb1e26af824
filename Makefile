# `make demo` shows what edgeq does; `make test` checks this checkout. Both make their own environment in .venv.
#
# PYTHON chooses the interpreter (3.11 or newer), VENV the environment's folder.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CODE := edgeq tests examples docs
DEMO := demo-output
CHROMIUM ?= chromium

# ONNX Runtime sends telemetry unless this is set before it is imported.
export ORT_DISABLE_TELEMETRY := 1

STARTED := $(shell date +%s)
ELAPSED = @echo "make $@: $$(( $$(date +%s) - $(STARTED) )) s"

.PHONY: help runner runner-android device-tools demo test test-all lint types format docs compatibility picture bench clean

help:
	@echo "make demo      package a bundled model for an Android phone, validate it, and say where the report is"
	@echo "make test      the default tests (some minutes)"
	@echo "make test-all  all tests, the slow ones too"
	@echo "make lint      ruff: rules and formatting; 'make format' applies them"
	@echo "make types     mypy, strict"
	@echo "make docs      write docs/cli.md again from the commands"
	@echo "make compatibility  run every changed promise of the targets on its provider, and write docs/compatibility.md"
	@echo "make picture   take the README's picture of the demo's report again, with chromium"
	@echo "make runner    compile the native runner for x86-64 and aarch64, into the package (docs/devices.md)"
	@echo "make device-tools  fetch what stands for phones and boards in 'make test-all' (docs/devices.md)"
	@echo "make runner-android NDK=folder  the same for Android, with the NDK's compiler"
	@echo "make bench     measure speed and accuracy on DATA=folder (docs/benchmarks.md)"
	@echo "make android-tools  fetch what the slow tests of Android modules need (docs/embedding.md)"
	@echo "make clean     remove what the other targets made, except $(VENV)"

# A stamp per set of extras: `all` holds everything that `examples` does.
$(VENV)/.examples: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgeq needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "Installing edgeq with its examples into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[examples]'
	@touch $@

$(VENV)/.all: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgeq needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "Installing edgeq with everything into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $(VENV)/.examples $@

demo: $(VENV)/.examples
	EDGEQ_CACHE=$(DEMO)/cache $(BIN)/edgeq export example:efficientnet-lite0 --target android \
		--output $(DEMO)/efficientnet-lite0-android --overwrite
	$(BIN)/edgeq run $(DEMO)/efficientnet-lite0-android --report $(DEMO)/validation
	@echo
	@echo "The package is in $(DEMO)/efficientnet-lite0-android, its report (open it in a browser):"
	@echo "  $(DEMO)/efficientnet-lite0-android/report.html"
	$(ELAPSED)

test: $(VENV)/.all
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --durations=10 $(ARGS)
	$(ELAPSED)

test-all: $(VENV)/.all
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "" --durations=20 $(ARGS)
	$(ELAPSED)

lint: $(VENV)/.all
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

types: $(VENV)/.all
	$(BIN)/mypy

format: $(VENV)/.all
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

docs: $(VENV)/.all
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python docs/generate_compatibility.py

# Every capability of every target that changed since it was checked; TARGETS="NAME ..." checks all of these again.
# Exit code 5 (something does not hold) still writes the page.
compatibility: $(VENV)/.all
	$(BIN)/edgeq targets check $(or $(TARGETS),--all --changed) --record docs/compatibility.json || test $$? -eq 5
	$(BIN)/python docs/generate_compatibility.py
	$(ELAPSED)

picture: demo
	$(CHROMIUM) --headless --hide-scrollbars --window-size=1100,1500 --screenshot=docs/images/report.png \
		$(abspath $(DEMO))/efficientnet-lite0-android/report.html

bench: $(VENV)/.all
	@test -n "$(DATA)" || { echo "make bench DATA=folder; docs/benchmarks.md says what it holds"; exit 2; }
	$(BIN)/python tests/benchmarks/compare_ort.py $(DATA) $(ARGS)
	$(ELAPSED)

runner: $(VENV)/.all
	$(BIN)/python -m edgeq.devices.programs linux-x86_64 linux-aarch64

runner-android: $(VENV)/.all
	@test -n "$(NDK)" || { echo "make runner-android NDK=folder of Android's NDK (r23 or later)"; exit 2; }
	ANDROID_NDK_HOME=$(NDK) $(BIN)/python -m edgeq.devices.programs android-arm64-v8a android-x86_64

device-tools: $(VENV)/.all
	$(BIN)/python tests/devices/device_tools.py

.PHONY: android-tools
android-tools: $(VENV)/.all
	$(BIN)/python tests/embed/install_android_tools.py

clean:
	rm -rf edgeq/devices/runner/bin
	rm -rf $(DEMO) dist build .mypy_cache .ruff_cache .pytest_cache
	find edgeq tests examples docs -name __pycache__ -type d -prune -exec rm -rf {} +
