"""What is published of a run: tables that documents quote, and choices of hyper-parameters that are those of the search."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from asrcl.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
SEARCH = ROOT / "recipes" / "accents" / "results" / "accents" / "tuning"
RECORDED = ROOT / "recipes" / "real_speech" / "results" / "real_speech_searched" / "tuning"
IMAGES = ROOT / "recipes" / "images" / "results" / "permuted_digits" / "tuning"
REPORT = """# Results

WER in % on each domain.

| Method | seeds | US | AVG | CI95 | probe | AVG_w | COV | CER | p (ihr) |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| FT | 3 | 2.00 | 2.0 ± 0.1 | 1–3 | 4.80 | 2.1 | 0.0 | 1.0 | 0.01 + |

Wilcoxon signed-rank test:

| IHR against | p |
| --- | ---: |
| FT | 0.01 |

![heat](heatmap.png)
"""


@pytest.fixture(scope="module")
def publish():
    spec = importlib.util.spec_from_file_location("publish_results", ROOT / "tools" / "publish_results.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["publish_results"] = module
    spec.loader.exec_module(module)
    return module


def test_the_short_table_is_the_main_one_with_fewer_columns(publish):
    assert publish.short_table(REPORT).splitlines() == [
        "| Method | US | AVG | CI95 | probe | p (ihr) |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| FT | 2.00 | 2.0 ± 0.1 | 1–3 | 4.80 | 0.01 + |",
    ]


def test_the_table_of_the_best_has_all_references_and_what_each_cost(publish, tmp_path):
    rates = {"ft": 3.0, "ihr": 1.5, "separate": 1.0, "a": 2.5, "b": 1.25, "c": 4.0}
    for name in rates:
        write_json(tmp_path / name / "1" / "results.json", {"label": name.upper()})
    main = [f"| {name.upper()} | 1 | {rate:.2f} | {'**1.25**' if name == 'b' else rate} | 5.0 |" for name, rate in rates.items()]
    costs = [f"| {name.upper()} | – | 0.1 | 4 | – | {rate:.1f} | 7.0 |" for name, rate in rates.items()]
    report = [
        *("WER in %", "", "| Method | seeds | US | AVG | COV |", "| --- | ---: | ---: | ---: | ---: |", *main, "", "![x](x.png)"),
        *("### Hyper-parameters and costs", "", "| Method | chosen | learning rate | epochs | options | time | kept |"),
        *("| --- | --- | ---: | ---: | --- | ---: | ---: |", *costs),
    ]
    lines = publish.best_table("\n".join(report), tmp_path, 1).splitlines()
    assert lines[0] == "| Method | US | AVG | COV | chosen | time | kept |"
    assert [line.split()[1] for line in lines[2:]] == ["SEPARATE", "B", "IHR", "FT"]
    assert lines[3] == "| B | 1.25 | **1.25** | 5.0 | – | 1.2 | 7.0 |"


def test_a_document_is_refreshed_where_it_is_marked(publish, tmp_path):
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- results:x -->\nold\n<!-- /results -->\nb\n<!-- results:x_short -->\n<!-- /results -->\n")
    publish.refresh(page, "x", "new | \\1")
    publish.refresh(page, "x_short", "short")
    publish.refresh(page, "y", "nothing")
    assert page.read_text() == (
        "a\n<!-- results:x -->\nnew | \\1\n<!-- /results -->\nb\n<!-- results:x_short -->\nshort\n<!-- /results -->\n"
    )


def test_a_table_over_orders_is_found_and_an_accuracy_s_main_table(publish):
    table = "| Method | ACC |\n| --- | ---: |\n| FT | 60 |"
    report = f"# Results\n\n## Order of the domains: x\n\nIn 2 orders.\n\n{table}\n\n![bands](o.png)\n\n"
    report += REPORT.replace("WER in %", "accuracy in %")
    assert publish.orders_table(report) == f"In 2 orders.\n\n{table}"
    assert publish.orders_table(REPORT) == ""
    assert publish.main_table(report).startswith("accuracy in % on each domain.")


def test_sizes_are_numbers_and_files_beside_the_errors(publish, tmp_path):
    for seed, sizes in ((1, [100, 110, 130]), (2, [100, 120, 140])):
        folder = tmp_path / "ft" / str(seed)
        (folder / "increments").mkdir(parents=True)
        for name, length in (("b", 10), ("c", 30)):
            (folder / "increments" / f"{name}.safetensors").write_bytes(b"x" * length)
        stages = [{"parameters": size} for size in sizes]
        write_json(folder / "results.json", {"label": "FT", "kind": "", "domains": ["a", "b", "c"], "stages": stages})
    assert publish.sizes_table(REPORT, tmp_path).splitlines() == [
        "| Method | numbers per domain | bytes per domain | AVG | CI95 | probe |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| FT | 18 | 20 | 2.0 ± 0.1 | 1–3 | 4.80 |",
    ]


def test_searches_are_a_row_each_the_chosen_setting_beside_the_best_of_all(publish, tmp_path):
    def row(average, rise, **options):
        return {**options, "old": 1.0, "new": 2.0, "average": average, "rise": rise}

    judged = {"protocol": "sequence", "domains": ["a", "c"], "rise": 0.5, "seeds": [1]}
    found = {"ft": [row(2.0, 0.25), row(1.5, 3.0)], "ihr": [row(1.25, 0.0)]}
    (tmp_path / "tuning").mkdir()
    for method, rows in found.items():
        tried = {"rows": rows, "diverged": [{"tau": 1.0, "reason": "x"}] if method == "ihr" else []}
        write_json(tmp_path / "tuning" / f"{method}-sequence.json", {"method": method, **judged, **tried})
    title, _, _, _, *lines = publish.search_table(tmp_path).splitlines()
    assert "after a → c, seeds 1, of the settings that raise the first domain by at most 0.5 points" in title
    assert lines == [
        "| `ihr` | 1 of 2 | 1.00 | 2.00 | 1.25 | 0.00 | 1.25 | 0.00 |",
        "| `ft` | 2 of 2 | 1.00 | 2.00 | 2.00 | 0.25 | 1.50 | 3.00 |",
    ]
    write_json(tmp_path / "tuning" / "ewc.json", {"method": "ewc", **judged, **tried, "rise": None})
    with pytest.raises(ValueError, match="searches of 2 protocols"):
        publish.search_table(tmp_path)


@pytest.mark.parametrize(
    "folder, protocol, name",
    [
        *((SEARCH, "sequence", "accents"), (SEARCH, "first", "accents_first")),
        *((IMAGES, "sequence", "permuted_digits"), (RECORDED, "first", "real_speech_searched")),
    ],
)
def test_the_hyper_parameters_of_the_recipe_are_those_that_its_search_chose(folder, protocol, name):
    chosen = yaml.safe_load((folder / f"{protocol}.yaml").read_text())["methods"]
    used = yaml.safe_load((ROOT / "conf" / "tuned" / f"{name}.yaml").read_text())["methods"]
    told = {method: options.pop("chosen") for method, options in used.items()}
    for options in chosen.values():
        options.pop("chosen", None)  # searches that were made before it was written have none
    assert {method: used[method] for method in chosen} == chosen
    assert used["separate"] == used["joint"] == {"run": chosen["ft"]["run"]} and told["separate"] == told["joint"] == "as ft"
    for method in chosen:  # every search of the folder says how many settings and seeds it had
        search = read_json(folder / f"{method}{'' if protocol == 'first' else '-sequence'}.json")
        size = len(search["rows"]) + len(search["diverged"])
        assert told[method] == f"{protocol}, {size} settings, seeds {' '.join(map(str, search['seeds']))}"


def test_no_search_on_images_is_larger_than_the_space_or_than_another():
    found = [read_json(path) for path in IMAGES.glob("*-sequence.json")]
    sizes = [(len(search["rows"]) + len(search["diverged"]), math.prod(map(len, search["space"].values()))) for search in found]
    assert len(found) == 17 and all(tried == min(12, possible) for tried, possible in sizes)


@pytest.mark.parametrize("tail", ["", "-sequence"])
def test_no_search_of_the_recipe_is_larger_than_another(tail):
    found = {method: read_json(SEARCH / f"{method}{tail}.json") for method in ("ft", "fta", "ewc", "ihr", "laplace")}
    assert len({len(search["rows"]) + len(search["diverged"]) for search in found.values()}) == 1
    best = {method: min(search["rows"], key=lambda row: row["average"]) for method, search in found.items()}
    assert all(search["chosen"].items() <= best[method].items() for method, search in found.items())


def test_a_folder_without_a_report_is_one_line_that_says_what_to_do(tmp_path):
    command = [sys.executable, ROOT / "tools" / "publish_results.py", tmp_path, tmp_path]
    found = subprocess.run(command, capture_output=True, text=True)
    wanted = f"publish_results: {tmp_path}: no RESULTS.md; run asrcl report {tmp_path} first\n"
    assert (found.returncode, found.stderr) == (1, wanted)
