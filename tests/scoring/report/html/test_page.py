import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_runs import DOMAINS, write_runs

from asrcl.exceptions import InputError
from asrcl.scoring import METRICS, RunResult
from asrcl.scoring.report.html.page import write_html
from asrcl.scoring.report.summary import ScenarioSummary, summarise
from asrcl.scoring.results.discovery import scan_results

VOID = {"meta", "link", "input", "br"}


class Checker(HTMLParser):
    """Nesting, ids, links within the page, and everything that could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [found["id"]] if found.get("id") else []
        self.links += [found["href"][1:]] if tag == "a" else []
        sources = {"src", "srcset", "data", *(() if tag == "a" else ("href",))}
        self.loads += [value for key, value in attrs if value and key in sources]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        return

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_well_formed_and_loads_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    checker = Checker(text)
    assert len(set(checker.ids)) == len(checker.ids) and set(checker.links) <= set(checker.ids)
    assert checker.loads == ["data:,"]
    assert "default-src 'none'" in text and not re.search(r"https?://|@import|url\(", text)


def test_the_numbers_are_those_of_the_summary(page: Path, summary: ScenarioSummary) -> None:
    words = "".join(Checker(page.read_text(encoding="utf-8")).words)
    for method in summary.methods:
        assert f"{method.mean('avg'):.2f} ± {method.deviation('avg'):.2f}" in words
        assert f"{method.interval.low:.2f}–{method.interval.high:.2f}" in words
        assert all(f"{value:.1f}" in words for value in method.matrix.ravel())
    difference = next(method.difference for method in summary.methods if method.difference)
    assert f"{difference.low:+.2f} to {difference.high:+.2f}" in words
    for key in ("avg", "bwt", "fwt", "cov", "forgetting", "intransigence", "word_weighted_avg"):
        metric = METRICS[key]
        assert metric.formula in words and metric.source in words and metric.references.replace("`", "") in words


def test_every_section_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for words in (
        "Significance", "After every stage", "Old against new", "Every domain after every stage",
        "Hyper-parameters tried on dev data", "Training",
        "How far the weights move", "predicted loss increase", "Curvature", "eigenvalue", "What was recognised",
        "What the numbers mean", "Source commit abc1234", "asrcl decode --methods ihr --seeds 1",
        "Where configurations differ", "accents/ihr/1–2", "BWT = ",
    ):  # fmt: skip
        assert words in text, words


def test_equal_runs_give_equal_bytes(exp: Path, page: Path, tmp_path: Path) -> None:
    from asrcl.scoring.results.stage_records import sweeps

    runs = scan_results([exp]).require()
    again = write_html(summarise(runs), tmp_path / "again.html", sweeps=sweeps(runs, [exp]))
    assert again.read_bytes() == page.read_bytes()


def test_texts_cannot_break_out(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    folder = write_runs(tmp_path, ("ihr",), 1, 3, domains=("<b>a", "b&c"))
    path = next(folder.rglob("results.json"))
    content = json.loads(path.read_text())
    content |= {"command": evil, "method": 'x"><i>', "scenario": evil, "config": {"<k>": evil}, "environment": {"git": evil}}
    path.write_text(json.dumps(content))
    items = next(folder.rglob("stage2/b&c/utterances.jsonl"))
    items.write_text(items.read_text().replace(" the ", f" {evil.replace('/', chr(92) + '/')} "))
    text = write_html(summarise(scan_results([folder]).require()), tmp_path / "r.html").read_text(encoding="utf-8")
    checker = Checker(text)
    assert text.count("<script") == 2 and "<i>" not in re.sub(r'<i style="[^"]*">', "", text)
    assert "alert(1)" in text and "<b>a" in " ".join(checker.words)


def test_one_run_of_one_domain_without_anything(tmp_path: Path) -> None:
    run = RunResult("alone", "ft", 0, "image", ["digits"], [[7]], [100])
    text = write_html(summarise([run]), tmp_path / "r.html", notices=["1 results file not used"]).read_text(encoding="utf-8")
    Checker(text)
    assert "1 run, 1 scenario, 1 method, 1 seed." in text and "1 results file not used" in text and "93.00" in text
    sections = ("Old against new", "What was recognised", "Training<", "Curvature<", "Significance", "Hyper-parameters", "WER")
    for absent in sections:
        assert absent not in text, absent
    assert "There is one run." not in text and "No configuration was recorded." in text
    assert "A[i,j] is the accuracy on domain j after stage i" in text and "R[" not in text and "error rate" not in text


def test_orders_of_the_same_domains_are_compared(tmp_path: Path) -> None:
    write_runs(tmp_path, ("ft", "ihr"), 1, 6, scenario="forth", records=False)
    write_runs(tmp_path, ("ft", "ihr"), 1, 6, scenario="back", domains=DOMAINS[::-1], records=False)
    runs = [replace(run, lengths=[50] * 5) for run in scan_results([tmp_path]).require()]
    for run in runs:
        run.item_files = []
    text = write_html(summarise(runs), tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Order of the domains" in text and "AOPD" in text and "The same domains in 2 orders: back, forth." in text
    assert text.index('id="orders"') < text.index('id="scenario1"') and text.count("After every stage") == 3


def test_orders_of_one_experiment_come_in_one_table_and_apart_in_brief(tmp_path: Path) -> None:
    write_runs(tmp_path, ("ft", "ihr"), 1, 6, scenario="forth", records=False)
    runs = scan_results([tmp_path]).require()
    turned = [replace(run, domains=run.domains[::-1], lengths=run.lengths[::-1], scenario="x_order_2") for run in runs]
    runs = [replace(run, item_files=[]) for run in [*(replace(run, scenario="x_order_1") for run in runs), *turned]]
    for run in runs:
        run.config = {"scenario": {"name": "x", "order": run.scenario[-1]}}
    text = write_html(summarise(runs), tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<title>asrcl: x</title>" in text and text.count("After every stage") == 1 and text.count("After the last stage") == 2
    assert "Old against new" not in text and "What was recognised" not in text
    Checker(text)


def test_sixty_runs_are_fast_and_small(tmp_path: Path) -> None:
    folder = write_runs(tmp_path, utterances=16)
    runs = scan_results([folder]).require()
    assert len(runs) == 56
    started = time.perf_counter()
    path = write_html(summarise(runs), tmp_path / "r.html")
    assert time.perf_counter() - started < 20
    assert path.stat().st_size < 5_000_000
    Checker(path.read_text(encoding="utf-8"))


def test_neither_torch_nor_pandas_is_imported(exp: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from asrcl.scoring.commands.report import make_report;"
        f"make_report([Path({str(exp)!r})], out=Path({str(tmp_path)!r}), views=['html', 'tables'], say=lambda line: None);"
        "print(*[name for name in ('torch', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "" and (tmp_path / "report.html").is_file()


def test_missing_jinja_is_explained(summary: ScenarioSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InputError, match="pip install jinja2"):
        write_html([summary], tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


def test_steps_are_told_with_what_was_predicted_and_measured(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    predicted = [sum(share / (1 + k) for k in range(60)) for share in (0.02, 0.004)]
    for title, cell in (
        ("Update norms", "9 → 6.5"),
        ("Predicted loss increase", "{:.3g} → {:.3g}".format(*predicted)),
        ("Measured loss increase", "0.5 → 0.125"),
    ):
        assert title in text and cell in text, title


def test_the_footer_names_every_kind_of_file_that_is_read(page: Path) -> None:
    footer = page.read_text(encoding="utf-8").split("<footer>")[1]
    assert "from results.json, the files it names, costs.json and tuning/*.json" in footer and "alone" not in footer


def test_layers_are_those_of_the_largest_updates_and_of_the_largest_predictions(page: Path) -> None:
    view = page.read_text(encoding="utf-8").split("<summary>Per layer: IHR, stage 5 (WMI)</summary>")[1].split("</details>")[0]
    updates, predictions = re.findall(r"<figure>(.*?)</figure>", view, flags=re.S)
    names = [f"encoder.layers.{k // 4}.block{k % 4}.linear" for k in range(60)]
    for chart, drawn in ((updates, names[:40]), (predictions, names[20:])):
        assert re.findall(r"<title>(.*?): ", chart) == drawn
    assert "The 40 of 60 layers with the largest updates." in updates
    assert "The 40 of 60 layers with the largest predictions; increase of the loss on SCO." in predictions


def legend_after(text: str, heading: str) -> list[str]:
    """The words of the first legend below a heading."""
    legend = text.split(f"<h3>{heading}</h3>")[1].split('<ul class="legend"')[1].split("</ul>")[0]
    return re.findall(r"</svg> (.*?)</li>", legend)


def test_a_legend_names_the_methods_that_have_a_curve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert legend_after(text, "Training") == ["Fine-tuning (FT)", "IHR"]
    assert legend_after(text, "After every stage") == ["Initial model", "Fine-tuning (FT)", "IHR"]


def render_page(exp: Path) -> str:
    from asrcl.scoring.results.stage_records import sweeps

    runs = scan_results([exp]).require()
    return write_html(summarise(runs), exp / "page.html", sweeps=sweeps(runs, [exp])).read_text(encoding="utf-8")


def test_sweeps_of_several_methods_share_one_plane(tmp_path: Path) -> None:
    folder = write_runs(tmp_path, ("ft", "ihr"), seeds=1, utterances=4)
    one = render_page(folder)
    assert "<h4>All methods" not in one
    rows = [{"strength": s, "old": 9.0 - s, "new": 5.0 + s, "average": 7.0} for s in (1, 2)]
    (folder / "tuning" / "fta.json").write_text(json.dumps({"method": "fta", "seeds": [1, 2], "rows": rows}))
    both = render_page(folder)
    plane = both.split("<h4>All methods, first adaptation</h4>")[1].split("</figure>")[0]
    drawn = plane.split("<details>")[0]
    assert drawn.count("strength ") == 2 and drawn.count("tau ") == 5 and "tried with different seeds" in drawn
    assert "<summary>What was chosen</summary>" in plane and "After the first adaptation." in plane
    chosen = plane.split("<summary>What was chosen</summary>")[1]
    assert "tau 3" in chosen and "tau 2" not in chosen, "the lowest mean, wherever it stands"
    assert "strength 1" in chosen and "strength 2" not in chosen
    assert legend_after(both, "Hyper-parameters tried on dev data") == ["IHR", "fta"]


def test_a_constrained_search_says_so_and_shows_what_it_chose(tmp_path: Path) -> None:
    folder = write_runs(tmp_path, ("ft", "ihr"), seeds=1, utterances=4)
    for method in ("fta", "ewc"):
        rows = [{"strength": s, "old": 9.0, "new": 5.0, "average": 3.0 + s, "rise": 0.2 * s} for s in (2, 1)]
        (folder / "tuning" / f"{method}.json").write_text(json.dumps({"method": method, "seeds": [1], "rise": 0.5, "rows": rows}))
    page = render_page(folder)
    assert "first adaptation, the first domain&#39;s rise at most 0.5, seeds 1</h4>" in page
    plane = page.split("<h4>All methods, first adaptation, the first domain&#39;s rise at most 0.5</h4>")[1].split("</figure>")[0]
    chosen = plane.split("<summary>What was chosen</summary>")[1]
    assert "strength 2" in chosen and "strength 1" not in chosen, "the first, though its mean is not the lowest"


def test_searches_of_two_protocols_stand_apart(tmp_path: Path) -> None:
    folder = write_runs(tmp_path, ("ft", "ihr"), seeds=1, utterances=4)
    rows = [{"train.adapt.epochs": n, "old": 9.0, "new": 5.0, "average": 8.2} for n in (4, 8)]
    search = {"method": "ft", "protocol": "sequence", "domains": ["US", "WMI", "ENG"], "seeds": [1], "rows": rows}
    search["space"] = {"train.adapt.epochs": [4, 8, 16]}
    (folder / "tuning" / "ft-sequence.json").write_text(json.dumps(search))
    page = render_page(folder)
    assert "<h4>Fine-tuning (FT), all adaptations (US → WMI → ENG), seeds 1</h4>" in page
    assert "<h4>IHR, first adaptation, seeds 1</h4>" in page and "<h4>All methods" not in page
    view = page.split("all adaptations (US → WMI → ENG), seeds 1")[1].split("</figure>")[0]
    assert "2 settings of the space train.adapt.epochs: 4, 8, 16" in view and "8.20" in view


def test_probes_have_a_column_and_a_table(tmp_path: Path) -> None:
    folder = write_runs(tmp_path, ("ft", "ihr"), seeds=2, utterances=4)
    before = render_page(folder)
    assert "what no stage trains on" not in before
    for path in folder.glob("*/*/results.json"):
        content = json.loads(path.read_text())
        stages = len(content["domains"])
        content["probes"] = [{"name": "street", "errors": list(range(10, 10 + stages)), "length": 40}]
        path.write_text(json.dumps(content))
    page = render_page(folder)
    words = Checker(page).words
    assert "street: what no stage trains on" in words and "street (never trained on) 40" in "".join(words)
    assert words.count("street") >= 2 and "25.00" in words and "35.00" in words
