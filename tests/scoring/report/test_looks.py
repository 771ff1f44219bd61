from asrcl.scoring import RunResult
from asrcl.scoring.report.looks import BLACK, GREY, looks
from asrcl.scoring.report.summary import summarise


def run(method: str, **standing: str) -> RunResult:
    return RunResult("toy", method, 0, "word", ["a", "b"], [[1, 2], [3, 4]], [9, 9], **standing)


def test_looks_differ_for_many_methods_and_follow_the_role_not_the_id() -> None:
    runs = [run(f"m{k:02d}") for k in range(14)]
    runs += [run("start", role="initial"), run("upper", role="oracle", kind="joint"), run("own", role="oracle", kind="separate")]
    found = looks(summarise(runs)[0].methods, ["tried", "m00"])
    assert len({(look.colour, look.line, look.marker) for look in found.values()}) == len(found) == 18
    assert [found[name].colour for name in ("start", "upper", "own")] == [GREY, BLACK, BLACK]
    assert {GREY, BLACK}.isdisjoint(found[name].colour for name in ("m00", "m13", "tried"))
    assert found["m00"].style(3)["markersize"] == 3
