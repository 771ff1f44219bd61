"""Copy a scenario's report into its recipe and its main table into the READMEs, so that no number there is typed.

    tools/publish_results.py exp/accents recipes/accents --page

Writes recipes/accents/results/<scenario>/{RESULTS.md,*.png,tuning/}, with --page also report.html (which quotes utterances:
only where their licence allows it), and refreshes what stands between `<!-- results:accents -->` and `<!-- /results -->` in
README.md and recipes/accents/README.md. Other marks: `accents_short` is the same with fewer columns, `accents_best` the ten best
methods and all references with how they were tuned and what they cost, `accents_steps` what stages did to the weights,
`accents_tuning` the searches for hyper-parameters and `accents_search` one row for each of them; `accents_trust` is how far
curvature can be trusted; `accents_orders` is the table over orders of the domains, `accents_sizes` says what each domain adds to
the first one's model, and `accents_tradeoff` is exp/accents/tradeoff.md, where tools/plot_tradeoff.py wrote one. The folder of a
study (`asrcl study`) has its tables under their own names.
"""

from __future__ import annotations

import re
import shutil
import sys
from itertools import dropwhile, takewhile
from pathlib import Path

from asrcl.exceptions import InputError
from asrcl.files import read_json, write_text
from asrcl.scoring.results.stage_records import RATES

SHORT = ("Method", "US", "AVG", "CI95", "probe")
"""Columns of the short table, beside that of the test."""
REFERENCES = ("initial", "ft", "fta", "ewc", "ihr", "er", "single", "separate", "joint")
"""Methods that every table of the best has."""
REPOSITORY = Path(__file__).resolve().parents[1]


def main_table(report: str) -> str:
    """The sentences and the table at the head of a report."""
    start = min(report.index(words) for words in ("WER in %", "accuracy in %") if words in report)
    return report[start : report.find("\n![", start)].strip()


def orders_table(report: str) -> str:
    """The sentences and the table over orders of the domains; empty if there are none."""
    found = re.search(r"^## Order of the domains[^\n]*\n\n(.*?)^!\[", report, re.M | re.S)
    return found[1].strip() if found else ""


def sizes_table(report: str, folder: Path) -> str:
    """What each domain adds to the first one's model, in numbers and in bytes on disk, beside the error it buys."""
    rows = _cells(main_table(report))
    kept = [n for n, name in enumerate(rows[0]) if name in ("AVG", "ACC", "CI95", "probe", "F")]
    lines = [["Method", "numbers per domain", "bytes per domain", *(rows[0][n] for n in kept)]]
    lines.append(["---"] + ["---:"] * (len(lines[0]) - 1))
    found = {}
    for path in sorted(folder.glob("*/*/results.json")):
        result = read_json(path)
        sizes = [stage["parameters"] for stage in result["stages"] if "parameters" in stage]
        files = sorted((path.parent / "increments").glob("*.safetensors"))
        if (result.get("role"), result.get("decoded_by")) == ("oracle", "domain_model"):
            files = sorted(path.parent.glob("stage[2-9]*/model.safetensors"))
        adds = (sizes[-1] - sizes[0]) / (len(result["domains"]) - 1) if len(sizes) > 1 else 0
        space = sum(file.stat().st_size for file in files) / len(files) if files else 0
        found.setdefault(result.get("label"), []).append((adds, space))
    for row in rows[2:]:
        measured = found.get(row[0].strip("*"), [(0, 0)])
        numbers, size = (sum(values) / len(measured) for values in zip(*measured, strict=True))
        lines.append([row[0], *(f"{value:,.0f}" if value else "0" for value in (numbers, size)), *(row[n] for n in kept)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(text: str) -> list[list[str]]:
    """The cells of the first table in a text."""
    lines = text.splitlines()
    table = takewhile(lambda line: line.startswith("|"), dropwhile(lambda line: not line.startswith("|"), lines))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def short_table(report: str) -> str:
    """The main table with its most telling columns alone."""
    rows = _cells(main_table(report))
    kept = [n for n, name in enumerate(rows[0]) if name in SHORT or name.startswith("p (")]
    return "\n".join(f"| {' | '.join(row[n] for n in kept)} |" for row in rows)


def best_table(report: str, folder: Path, count: int = 10) -> str:
    """The best methods and all references, best first: error rates, how each was tuned, and what it costs."""
    rows = _cells(main_table(report))
    kept = [n for n, name in enumerate(rows[0]) if name in (*SHORT, "ACC", "COV") or name.startswith("p (")]
    [mean] = [n for n, name in enumerate(rows[0]) if name in ("AVG", "ACC")]
    costs = _cells(report[report.index("### Hyper-parameters and costs") :])
    shown = [n for n, name in enumerate(costs[0]) if name in ("chosen", "time", "kept")]
    beside = {row[0]: [row[n] for n in shown] for row in costs[2:]}
    always = {read_json(path).get("label") for name in REFERENCES for path in folder.glob(f"{name}/*/results.json")}
    sign = 1 if rows[0][mean] == "AVG" else -1
    measured = [row for row in rows[2:] if row[mean] != "–"]
    ranked = sorted(measured, key=lambda row: sign * float(row[mean].strip("*").split()[0]))
    best = [row for row in ranked if row[0].strip("*") not in always][:count]
    wanted = [row for row in ranked if row in best or row[0].strip("*") in always]
    lines = [[*(row[n] for n in kept), *beside.get(row[0].strip("*"), ["–"] * len(shown))] for row in wanted]
    head = [*(rows[0][n] for n in kept), *(costs[0][n] for n in shown)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] + ["---:"] * (len(head) - 1), *lines])


def refresh(document: Path, name: str, text: str) -> None:
    """Replace the marked part of a document."""
    content = document.read_text(encoding="utf-8")
    pattern = rf"(<!-- results:{name} -->\n).*?(<!-- /results -->)"
    if re.search(pattern, content, flags=re.DOTALL):
        write_text(document, re.sub(pattern, lambda found: f"{found[1]}{text}\n{found[2]}", content, flags=re.DOTALL))


def step_tables(report: str) -> str:
    """The sections about what each stage did to the weights and what that cost, without headings; empty if there are none."""
    names = "Update norms|Predicted loss increase|Measured loss increase"
    found = re.findall(rf"^### (?:{names})\n\n(.*?)(?=^#|^!)", report, re.M | re.S)
    return "\n\n".join(part.strip() for part in found)


def trust_tables(report: str) -> str:
    """The tables of losses along the way to the new weights beside what curvatures predict; empty if there are none."""
    names = "The way of the weights|What curvatures hold|Trust regions|Per kind of layer"
    found = re.findall(rf"^### ((?:{names})[^\n]*)\n\n(.*?)(?=^#|^!)", report, re.M | re.S)
    return "\n\n".join(f"*{title}.* {body.strip()}" for title, body in found)


def tuning_tables(folder: Path) -> str:
    """One table for every search: dev error rates after the first or after all adaptations, best first."""
    after = {"first": "after the first adaptation", "sequence": "after all adaptations"}
    parts = []
    for path in sorted((folder / "tuning").glob("*.json")):
        tuning = read_json(path)
        columns = list(tuning["rows"][0])
        rows = [[_written(c, row[c]) for c in columns] for row in tuning["rows"]]
        lines = [columns, ["---:"] * len(columns), *rows]
        protocol = tuning.get("protocol", "first")
        domains = f" ({' → '.join(tuning['domains'])})" if tuning.get("domains") else ""
        if tuning.get("rise") is not None:
            domains += f", the first domain's rise at most {tuning['rise']:g}"
        seeds = ", ".join(map(str, tuning["seeds"]))
        title = f"`{tuning['method']}`, dev error rate in % {after[protocol]}{domains}, seeds {seeds}:"
        parts.append(title + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


def search_table(folder: Path) -> str:
    """What the searches of one protocol came to: dev error rates of what each chose, and of its best setting whatever it did."""
    found = [read_json(path) for path in sorted((folder / "tuning").glob("*.json"))]
    protocols = {(search["protocol"], tuple(search["domains"]), search.get("rise"), tuple(search["seeds"])) for search in found}
    if len(protocols) != 1:
        raise InputError(f"{folder / 'tuning'}: searches of {len(protocols)} protocols; one table is for one of them")
    [(_, domains, rise, seeds)] = protocols
    lines = []
    for search in sorted(found, key=lambda search: search["rows"][0]["average"]):
        chosen, free = search["rows"][0], min(search["rows"], key=lambda row: row["average"])
        tried = f"{len(search['rows'])} of {len(search['rows']) + len(search['diverged'])}"
        rates = [_written(name, chosen[name]) for name in ("old", "new", "average", "rise")]
        lines.append([f"`{search['method']}`", tried, *rates, *(_written(name, free[name]) for name in ("average", "rise"))])
    limit = "" if rise is None else f", of the settings that raise the first domain by at most {rise:g} points the best"
    where = f"{' → '.join(domains)}, seeds {', '.join(map(str, seeds))}"
    title = f"Dev error rates in % after {where}{limit}; beside it the best of all."
    head = ["Method", "settings that worked", "old", "new", "average", "rise", "best of all: average", "rise"]
    return "\n".join([title, "", *(f"| {' | '.join(line)} |" for line in [head, ["---"] + ["---:"] * 7, *lines])])


def _written(column: str, value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if column in RATES else f"{value:g}"
    return str(value)


def machine(folder: Path) -> str:
    """One line about where the numbers come from."""
    files = sorted([*folder.glob("*/*/results.json"), *folder.glob("order_*/*/*/results.json")])
    result, seeds = read_json(files[0]), sorted({int(path.parent.name) for path in files})
    where = result["environment"]
    numbers = ', '.join(map(str, seeds))
    return f"Seeds {numbers}; {where['processor']}, accelerator {where['accelerator']}, torch {where['torch']}."


def publish_study(folder: Path, recipe: Path) -> None:
    """Copy the report and pictures of a study, and refresh its tables in the documents."""
    target = recipe / "results" / folder.name
    target.mkdir(parents=True, exist_ok=True)
    for source in [folder / "RESULTS.md", *folder.glob("*.png")]:
        shutil.copyfile(source, target / source.name)
    found = read_json(folder / "results.json")
    where = f"{found['environment']['processor']}, torch {found['environment']['torch']}; {found['seconds']:.0f} s."
    for name, text in found["sections"].items():
        for document in (REPOSITORY / "README.md", recipe / "README.md", *(REPOSITORY / "docs").glob("*.md")):
            refresh(document, name, f"{text.strip()}\n\n{where}")


def publish(folder: Path, recipe: Path, page: bool) -> None:
    """Copy report and pictures, with `page` also report.html, and refresh the documents."""
    if "study" in (read_json(folder / "results.json") if (folder / "results.json").is_file() else {}):
        publish_study(folder, recipe)
        return
    if not (folder / "RESULTS.md").is_file():
        raise InputError(f"{folder}: no RESULTS.md; run asrcl report {folder} first")
    target = recipe / "results" / folder.name
    target.mkdir(parents=True, exist_ok=True)
    for source in [folder / "RESULTS.md", *folder.glob("*.png"), *(folder.glob("report.html") if page else [])]:
        shutil.copyfile(source, target / source.name)
    if (folder / "tuning").is_dir():
        shutil.copytree(folder / "tuning", target / "tuning", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.lock"))
    report = (folder / "RESULTS.md").read_text(encoding="utf-8")
    text = f"{main_table(report)}\n\n{machine(folder)}"
    for document in (REPOSITORY / "README.md", recipe / "README.md"):
        refresh(document, folder.name, text)
        refresh(document, f"{folder.name}_short", f"{short_table(report)}\n\n{machine(folder)}")
        if f"<!-- results:{folder.name}_best -->" in document.read_text(encoding="utf-8"):
            refresh(document, f"{folder.name}_best", f"{best_table(report, folder)}\n\n{machine(folder)}")
        if f"<!-- results:{folder.name}_search -->" in document.read_text(encoding="utf-8"):
            refresh(document, f"{folder.name}_search", search_table(folder))
        refresh(document, f"{folder.name}_steps", step_tables(report))
        refresh(document, f"{folder.name}_orders", f"{orders_table(report)}\n\n{machine(folder)}")
        refresh(document, f"{folder.name}_trust", f"{trust_tables(report)}\n\n{machine(folder)}")
        refresh(document, f"{folder.name}_sizes", f"{sizes_table(report, folder)}\n\n{machine(folder)}")
        if (folder / "tradeoff.md").is_file():
            traded = (folder / "tradeoff.md").read_text(encoding="utf-8").strip()
            refresh(document, f"{folder.name}_tradeoff", f"{traded}\n\n{machine(folder)}")
        if tables := tuning_tables(folder):
            refresh(document, f"{folder.name}_tuning", tables)


if __name__ == "__main__":
    names = [word for word in sys.argv[1:] if word != "--page"]
    if len(names) != 2:
        sys.exit(__doc__)
    try:
        publish(Path(names[0]), Path(names[1]), "--page" in sys.argv)
    except InputError as error:
        sys.exit(f"publish_results: {error}")
