import re
import sys
from pathlib import Path

import pytest

from hallmark.cli import run
from hallmark.composition import compose
from hallmark.report.rows import read
from smoke import TINY

GUIDE = Path(__file__).parents[1] / "experiments" / "README.md"


@pytest.mark.slow
def test_the_guides_attack_runs_from_outside_the_package(tmp_path, monkeypatch):
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    (tmp_path / "my_attacks.py").write_text(code[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    attack = re.search(r"'\+attacks\.drop=(\{.*?\})'", GUIDE.read_text())[1]
    config = compose([*TINY, f"store={tmp_path / 's'}", f"results={tmp_path / 'r'}", f"+attacks.drop={attack}"])
    run(config)
    sys.modules.pop("my_attacks")
    rows = read(tmp_path / "r" / "runs.csv")
    dropped = rows[(rows["attack"] == "drop_filters") & (rows["metric"] == "p_value")]
    assert set(dropped["strength"]) == {0.1, 0.5}
    assert set(dropped["suspect"]) == {"marked", "attacked_innocent"}
    assert set(dropped["unit"]) == {"share of filters"}
