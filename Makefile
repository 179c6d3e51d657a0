.PHONY: install demo test matrix-smoke lint report clean

PYTHON ?= python3
BIN ?= .venv/bin

install:          ## make .venv and install Hallmark with its tools
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'

demo:             ## the whole story in minutes, without any download
	$(BIN)/hallmark experiment=demo
	$(BIN)/hallmark-report --results demo

test:             ## every test, two at a time
	$(BIN)/pytest -n 2

matrix-smoke:     ## every scheme against every attack on generated images, by two processes that share one store; minutes
	$(BIN)/python scripts/share_run.py $(BIN)/hallmark -m experiment=matrix scale=smoke

lint:             ## style, docstrings and types
	$(BIN)/ruff check src tests scripts
	$(BIN)/ruff format --check src tests scripts
	$(BIN)/mypy

report:           ## tables, figures, README blocks and the HTML page from results/runs.csv
	$(BIN)/hallmark-report

clean:            ## remove what a demo made; the store of finished stages stays
	rm -rf demo runs wandb
