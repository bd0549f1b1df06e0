"""Pages of the site that nobody writes: commands from their parsers, words and names from the package, benchmarks from their results."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import subprocess
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from links import Site, bibliography, relative

ROOT = Path(__file__).resolve().parent.parent

# What one wants to do -> the names of the front door that do it; those that are not named come last. After the bar:
# functions of the package, for those who need more than the front door.
TASKS = {
    "Open frames and look at them": (
        "open_frames load list_data fetch inspect mask convert make_frames select_frames show explore",
        "data.frames.frames.validate_frames data.formats.store.save_frames data.frames.automask.with_automask data.frames.peaks.find_peaks "
        "judge.views.plots.show_frame",
    ),
    "Simulate frames": (
        "simulate",
        "physics.simulation.simulate.simulate physics.simulation.own_experiments.own_experiment physics.simulation.experiments.Experiment physics.simulation.crystal.Crystal",
    ),
    "Make a twin of a detector": (
        "twin recover",
        "physics.twins.twin.learn_twin physics.twins.twin.twin_frames judge.inference.twins.judge_twin run.execution.comparing.execute_twin run.execution.comparing.execute_recovery judge.metrics.recovery.match_found",
    ),
    "Merge intensities": (
        "merge",
        "judge.inference.merges.merge_data physics.merging.merged.merge_reflections physics.merging.statistics.shell_table physics.merging.files.write_merged_mtz physics.indexing.reflections.reflection_table",
    ),
    "Train a peak finder": (
        "train_peaks",
        "data.frames.peaks.find_frame_peaks learn.recipes.saved_peak_nets.train_peak_net learn.recipes.saved_peak_nets.peak_way",
    ),
    "Train a model": (
        "train configure TrainedRun.resume TrainedRun.monitor monitor",
        "config.composition.compose_config run.execution.phases.execute_run learn.recipes.setup.run_trainer",
    ),
    "Find runs and read their numbers": (
        "open_run runs TrainedRun.config TrainedRun.state TrainedRun.history TrainedRun.summary TrainedRun.report "
        "TrainedRun.step TrainedRun.health TrainedRun.checkpoints TrainedRun.metrics TrainedRun.plots TrainedRun.samples "
        "TrainedRun.rewrite_report compare_runs settings settings_diff",
        "run.studies.listing.find_runs run.studies.comparison.execute_comparison",
    ),
    "Draw samples": (
        "TrainedRun.sample TrainedRun.sampler TrainedRun.show_sampling",
        "judge.inference.generators.open_generator learn.diffusion.keyed_sampling.Sampler run.execution.finished.execute_sample",
    ),
    "Take a model elsewhere": (
        "TrainedRun.export load_exported",
        "judge.exports.exporters.export_run judge.exports.package.check_package judge.exports.runtime.ExportedModel",
    ),
    "Look into an autoencoder": (
        "TrainedRun.reconstruct TrainedRun.latents TrainedRun.codebook TrainedRun.encoded TrainedRun.batch TrainedRun.autoencoder TrainedRun.model",
        "",
    ),
    "Judge frames": (
        "evaluate TrainedRun.evaluate TrainedRun.compare compare TrainedRun.frames",
        "judge.inference.comparison.ComparisonPlan judge.inference.anomalies.anomaly_scores",
    ),
    "Fill holes, and say what may have been": (
        "TrainedRun.inpaint TrainedRun.interpolate TrainedRun.posterior crystal_posterior",
        "judge.inference.measured.open_inpainting judge.inference.posterior.open_posterior",
    ),
    "Answer frames as they arrive": (
        "stream open_answers replay",
        "run.streaming.stream.StreamPlan run.streaming.stream.Stream run.streaming.answers.read_answers run.streaming.answers.read_stack",
    ),
    "Search for the best settings": (
        "sweep open_sweep",
        "run.studies.study.make_study run.studies.agents.run_agents",
    ),
    "Run on a cluster": (
        "submit resume status jobs logs cancel profiles",
        "run.slurm.submission.plan_submission run.slurm.job_table.job_rows",
    ),
    "Know what can be chosen": (
        "names presets check",
        "core.registry.entries config.settings.setting_rows",
    ),
    "Write a run notebook": (
        "TrainedRun.is_main TrainedRun.phase TrainedRun.whole TrainedRun.write_json TrainedRun.write_text "
        "TrainedRun.end_early TrainedRun.continue_on_rank_0",
        "",
    ),
    "Index frames": (
        "index TrainedRun.index",
        "physics.indexing.indexer.index_frames physics.indexing.stream.write_stream",
    ),
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; a bar within a cell is escaped."""
    head = list(head)
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", "<br>") for cell in row) + " |")
    return "\n".join(lines)


def code(text: Any) -> str:
    """Text as inline code; nothing where there is nothing."""
    return f"`{text}`" if str(text) else ""


def first_line(thing: Any) -> str:
    """The first sentence of a docstring, on one line."""
    text = inspect.getdoc(thing) or ""
    return " ".join(text.split("\n\n")[0].split())


# --- commands ---------------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command with its usage and arguments, as its parser has them."""
    from xrddiff.app.verbs.main import EXIT_CODES, build_parser

    parser = build_parser()
    found = list(_commands(parser))
    lines = ["# Command line", "", parser.description or "", "", "```text", "xrddiff COMMAND …", "```", ""]
    top = [(f"[`{p.prog}`](#{_slug(p.prog)})", about) for p, about in found if p.prog.count(" ") == 1]
    lines += [table(["command", "what it does"], top), "", EXIT_CODES.replace("`", "`"), ""]
    lines += [
        "`xrddiff run --help` prints the [words of a run](words.md) too; `xrddiff config list` prints [what is chosen by name](names.md).",
        "",
    ]
    for p, about in found:
        level = "#" * (1 + p.prog.count(" "))
        description = " ".join(textwrap.dedent(p.description or about or "").split())
        lines += [f"({_slug(p.prog)})=", f"{level} {p.prog}", "", description, "", "```text", _usage(p), "```", ""]
        if rows := [
            (code(_written(a)), _help(a)) for a in p.declared if not _is_help(a) and a.help != argparse.SUPPRESS
        ]:
            lines += [table(["argument", "what it is"], rows), ""]
    return "\n".join(lines)


def _commands(parser: Any):
    """The parsers of all commands, those of subcommands after their command, with their one line."""
    from xrddiff.app.verbs.main import GROUPS

    for name, child in parser.commands.items():
        yield child, GROUPS[name] if child.commands else child.get_default("verb").about
        yield from _commands(child)


def command_lines() -> dict[str, str]:
    """What each command does, in one line: those that have subcommands are left out."""
    from xrddiff.app.verbs.main import build_parser

    return {p.prog.removeprefix("xrddiff "): about for p, about in _commands(build_parser()) if not p.commands}


def _is_help(action: argparse.Action) -> bool:
    return "--help" in action.option_strings


def _usage(parser: argparse.ArgumentParser) -> str:
    words = " ".join(parser.format_usage().split()).removeprefix("usage: ")
    return textwrap.fill(words, 88, subsequent_indent=" " * 4, break_on_hyphens=False)


def _written(action: argparse.Action) -> str:
    value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    if isinstance(value, tuple):
        value = " ".join(value)
    if not action.option_strings:
        return f"{value} …" if action.nargs in ("*", "+") else str(value)
    return ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {value}")


def _help(action: argparse.Action) -> str:
    text = (action.help or "").replace("%%", "%").replace("*", "\\*").replace("<", "&lt;")
    return text + (" (required)" if action.required and action.option_strings else "")


def _slug(prog: str) -> str:
    return "command-" + prog.replace(" ", "-")


# --- words ------------------------------------------------------------------------------------------------------------


def words_page() -> str:
    """Every word of a run with its default, unit, range and meaning, and what each preset sets."""
    from xrddiff.config.composition import preset_words
    from xrddiff.config.overrides import conf_dir, presets
    from xrddiff.config.words.vocabulary import GROUPS, vocabulary

    lines = [
        "# Words of a run",
        "",
        "A run is told everything by words: `xrddiff run training.lr=1e-4`, in Python `xd.train(lr=1e-4)`. A group chooses a preset, "
        "which sets several words at once. This page is made from the package; `xrddiff run --help` prints the words, and "
        "`xrddiff config show` the values that hold for a run and where each of them comes from.",
        "",
    ]
    sections: dict[str, list] = {}
    for word in vocabulary().values():
        sections.setdefault(word.name.rpartition(".")[0], []).append(word)
    for section, words in sections.items():
        lines += [f"## {f'Words in {code(section)}' if section else 'Words of the run itself'}", ""]
        rows = [(f"{code(w.name)}", _default(w.default), _kind(w), w.metadata["help"]) for w in words]
        lines += [table(["word", "default", "value", "meaning"], rows), ""]
    for group in GROUPS:
        lines += [f"## Presets of `{group}`", ""]
        rows = []
        for name in presets(group):
            file = conf_dir() / group / f"{name}.yaml"
            note = re.match(r"((?:#.*\n)+)", file.read_text(encoding="utf-8")) if file.is_file() else None
            note = " ".join(line.strip("# ") for line in note[1].splitlines()) if note else ""
            own = " ".join(f"{word}={_plain(value)}" for word, (value, _) in preset_words(group, name).items())
            rows.append((code(f"{group}={name}"), note.replace("|", "\\|"), code(own.replace("`", "'"))))
        lines += [table(["preset", "", "sets"], rows), ""]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, default_flow_style=True, width=10**6).split("\n...")[0].strip().replace("'", "")


def _default(value: Any) -> str:
    return code('""' if value == "" else _plain(value))


def _kind(word: Any) -> str:
    low, high, above = (word.metadata.get(k) for k in ("low", "high", "above"))
    parts = [word.kind + (f", {word.unit}" if word.unit else "")]
    parts += [
        f"{words} {limit:g}" for words, limit in (("from", low), ("above", above), ("to", high)) if limit is not None
    ]
    return ", ".join(parts)


def names_page(site: Site) -> str:
    """Everything that is chosen by name, with its options, from the registry."""
    from xrddiff.app.verbs.config import option_line
    from xrddiff.core.registry import KINDS, entries, title

    lines = [
        "# What is chosen by name",
        "",
        "These are registered where they are defined, and so can yours be (the tutorial on extending shows how). `xrddiff config list KIND` prints the same.",
        "",
    ]
    for kind, about in KINDS.items():
        if not (found := entries(kind)):
            continue
        lines += [f"## {title(kind).capitalize()}", "", f"`{kind}`: {about.help}.", ""]
        if about.call and not about.closed:
            tried = entries("probe")[kind].help if kind in entries("probe") else "the call alone"
            lines += [
                f"Yours: {about.call.replace('*', chr(92) + '*')}.",
                "",
                f"Tried by `xrddiff config check`: {tried}.",
                "",
            ]
        rows = []
        for entry in found.values():
            options = "<br>".join(option_line(o).replace("*", "\\*") for o in entry.options.values())
            source = f"nbs/{entry.source.removeprefix('xrddiff.').replace('.', '/')}.ipynb"
            module = entry.source.removeprefix("xrddiff.")
            where = (
                f"[{module}]({relative(site.pages[source], 'reference/names.md')})" if source in site.pages else module
            )
            rows.append((code(entry.name), entry.help, options, where))
        lines += [table(["name", "what it is", "options", "module"], rows), ""]
    return "\n".join(lines)


# --- Python -----------------------------------------------------------------------------------------------------------


def api_page(site: Site, anchors: set[str]) -> str:
    """The front door by task, then the package's functions for the same tasks, each with its line and a link."""
    from xrddiff.app.front_door import door

    methods = {
        f"TrainedRun.{n}": m for n, m in inspect.getmembers(door.TrainedRun) if not n.startswith("_") and _own(m)
    }
    names = {n: getattr(door, n) for n in door.__all__ if n not in ("TrainedRun", "BadInput", "XrddiffError")} | methods
    left = dict(names)
    lines = [
        "# Python by task",
        "",
        "`import xrddiff as xd` is the front door: few names, the words of the command line as keywords, pictures as results. "
        "A run that is open, `run = xd.open_run(FOLDER)`, has the methods below. Everything under the front door can be "
        "imported too; its pages are the [mathematics](../mathematics.md) and the [modules](modules.md).",
        "",
    ]

    def rows(wanted: Iterable[str]) -> list[tuple[str, str]]:
        found = [(name, left.pop(name)) for name in wanted if name in left]
        return [
            (code(name.replace("TrainedRun.", "run.") if "." in name else f"xd.{name}"), first_line(thing))
            for name, thing in found
        ]

    for task, (front, inside) in TASKS.items():
        lines += [f"## {task}", ""]
        own = rows(front.split())
        for full in inside.split():
            own.append((_link(site, anchors, full), first_line(_thing(full))))
        lines += [table(["name", "what it does"], own), ""]
    if left:
        lines += ["## More", "", table(["name", "what it does"], rows(list(left))), ""]
    lines += [
        "## Errors",
        "",
        "What is wrong with an input raises `xd.BadInput`, with one sentence: what, where, and what was expected. [Questions](../questions.md) has many of them.",
        "",
    ]
    return "\n".join(lines)


def _own(member: Any) -> bool:
    function = member.fget if isinstance(member, property) else getattr(member, "func", member)
    return getattr(function, "__module__", "").startswith("xrddiff.")


def _thing(full: str) -> Any:
    module, _, name = full.rpartition(".")
    return getattr(importlib.import_module(f"xrddiff.{module}"), name)


def _link(site: Site, anchors: set[str], full: str) -> str:
    module, _, name = full.rpartition(".")
    _thing(full)  # AttributeError: the page names what there is not
    anchor = f"xrddiff.{full}".lower()
    if anchor in anchors:
        return f"[`{full}`](#{anchor})"
    page = site.pages.get(f"nbs/{module.replace('.', '/')}.ipynb")
    return f"[`{full}`]({relative(page, 'reference/python.md')})" if page else code(full)


# --- benchmarks -------------------------------------------------------------------------------------------------------


def dates() -> dict[str, str]:
    """When each file of bench/results changed last, YYYY-MM-DD, as git knows."""
    try:
        said = subprocess.run(
            ["git", "log", "--format=%cs", "--name-only", "--", "bench/results"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return {}
    found: dict[str, str] = {}
    day = ""
    for line in said.splitlines():
        if re.fullmatch(r"\d{4}-\d\d-\d\d", line):
            day = line
        elif line:
            found.setdefault(line, day)
    return found


def benchmark_command(path: Path) -> str:
    """The command that wrote a table, as the table says it."""
    text = path.read_text(encoding="utf-8")
    if found := re.search(r"`([^`\n]*\bbench/\w+\.py[^`\n]*)`", text):
        return found[1]
    if found := re.search(r"^    (.*\bbench/\w+\.py.*)$", text, re.M):
        return found[1].strip()
    if found := re.search(r"`(xrddiff run [^`\n]*)`", text):  # the numbers of a run's report
        return found[1]
    script = ROOT / "bench" / f"{path.stem}.py"
    return f"python bench/{script.name}" if script.is_file() else ""


def benchmarks_page(site: Site) -> str:
    """What was measured, by which command, and when."""
    when = dates()
    rows = []
    for path in sorted((ROOT / "bench" / "results").glob("*.md")):
        source = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        title = re.search(r"^# (.*)", text, re.M)[1]
        said = re.search(r"20\d\d-\d\d-\d\d", "\n".join(text.splitlines()[:6]))
        day = said[0] if said else when.get(source, "")
        rows.append((f"[{title}]({site.pages[source]})", code(benchmark_command(path)), day))
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "Every number of these pages was written by a command of `bench/`, never by hand. Each page says what was measured, with what, and on which machine; "
            "the day is that of the measurement, or else of the last change of the table. Comparisons are with other software on the same task, or with the same "
            "frames measured twice.",
            "",
            table(["what was measured", "command", "day"], rows),
            "",
        ]
    )


# --- bibliography -----------------------------------------------------------------------------------------------------


def references_page(site: Site, titles: dict[str, str]) -> str:
    """The bibliography, each entry with the pages that use it."""
    lines = ["# References", "", "What the notebooks are built on, with the pages that use it.", ""]
    for entry in sorted(
        bibliography(), key=lambda e: (e.surnames[0].lower().removeprefix("van den "), e.get("year") or "")
    ):
        pages = sorted(site.cited.get(entry.key, ()))
        used = ", ".join(f"[{titles.get(page, page)}]({relative(page, 'references.md')})" for page in pages)
        lines += [f"(ref-{entry.key})=", f"{entry.written()}" + (f"<br>In {used}." if used else ""), ""]
    return "\n".join(lines)


# --- for language models ----------------------------------------------------------------------------------------------


def llms_text(sections: dict[str, list[tuple[str, str, str]]], summary: str) -> str:
    """llms.txt: what the site has, a line for each page. sections: heading -> (title, page, one line)."""
    lines = ["# xrddiff", "", f"> {summary}", ""]
    lines += [
        "Source: notebooks under nbs/, exported to the package xrddiff. Python: `import xrddiff as xd`. Command: `xrddiff`.",
        "",
    ]
    for heading, pages in sections.items():
        lines += [f"## {heading}", ""]
        lines += [f"- [{title}]({page})" + (f": {line}" if line else "") for title, page, line in pages]
        lines += [""]
    return "\n".join(lines)
