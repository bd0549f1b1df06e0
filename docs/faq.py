"""Questions that begin with an error sentence. Each sentence is provoked by a real call when the page is made."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Question:
    """A heading, what somebody typed (after `xrddiff `, or Python after `>>> `), and what to do."""

    chapter: str
    heading: str
    typed: str
    answer: str


FILES = "Files"
WORDS = "Words"
RUNS = "Runs and samples"
MACHINES = "Clusters and workers"
PYTHON = "Python and JupyterLab"
QUESTIONS = [
    Question(FILES, "The file is not there", "data inspect run_42.h5", "Paths are those of the folder in which the command is typed; `~` and absolute paths work too. Several files: quote the pattern, `'run_*.h5'`."),
    Question(FILES, "The format is not known", "data inspect notes.txt", "`xrddiff config list reader` lists the formats with the endings of their files. Raw dumps without a header are best saved as `.npy`."),
    Question(FILES, "The file is cut off", "data inspect cut.h5", "The header of the file promises more bytes than there are: a copy that was interrupted, or a file that is still being written."),
    Question(FILES, "It has the right ending but is no HDF5", "data inspect pointer.h5", "This one is a pointer that Git LFS leaves in place of a file: `git lfs pull` fetches it. A page of a login portal that was saved as `.h5` looks much the same."),
    Question(FILES, "There is more than one data set in it", "data inspect two.h5", "`xrddiff data inspect two.h5 dataset=/a`; in a run `data.dataset=/a`."),
    Question(FILES, "It does not say its wavelength", "data index run42.h5", "Frames without geometry can be looked at and trained on; what needs q or 2θ asks for it. Give the numbers, or a PONI or CrystFEL `.geom` file, and keep them: `xrddiff data convert run42.h5 with.h5 geometry=detector.poni wavelength=1.03`."),
    Question(FILES, "Frames cannot be saved as a picture", "data convert run42.h5 run42.png", "A picture keeps neither counts nor mask. `xrddiff data inspect FILE` draws one beside the file."),
    Question(WORDS, "A preset has another name", "run model=vea_kl --dry-run", "[Words](reference/words.md) has all presets; `xrddiff config list` prints them."),
    Question(WORDS, "A word has another name", "run training.learning_rate=1e-3 --dry-run", "`xrddiff run --help` prints all words; the one meant here is `training.lr`."),
    Question(WORDS, "A value has the wrong type", "run training.lr=fast --dry-run", "Numbers, `true`, `false`, `null`, lists `[1,2]` and mappings `{a: 1}` are written as in YAML."),
    Question(WORDS, "A value is out of range", "run model=vq model.codes=0 --dry-run", "The range of each word stands beside it in [Words](reference/words.md)."),
    Question(WORDS, "A sampler, loss or metric is not known", "run model=ddpm inference.sampler=heunn --dry-run", "[What is chosen by name](reference/names.md) lists them; your own can be [registered](tutorials/extending.ipynb)."),
    Question(WORDS, "There is no data", "run data=folder --dry-run", "`data.data_path=FILE` takes frames of yours, `data=sim128` simulated ones, `data=folder folder=PATH` all files of a folder."),
    Question(WORDS, "An option is misspelt", "run --dryrun", "`--dry-run` prints the whole configuration and starts nothing."),
    Question(RUNS, "There is no such run", "sample output/nothing", "A run is the folder that holds `config.yaml`. `xrddiff runs list` lists those below `output`, the newest last."),
    Question(RUNS, "A run cannot be resumed", "run resume=output/nothing", "`xrddiff runs list` says which runs were stopped and how far they got; `xrddiff run resume=FOLDER` continues from the newest intact checkpoint."),
    Question(RUNS, "Nothing is listed", "runs nowhere", "Runs are kept where they were started, below `output`; the word `output_dir` chooses another place."),
    Question(MACHINES, "There is no such profile", "submit --profile smal model=vae_kl", "`xrddiff cluster profiles` prints what there is. A profile of your own is a YAML file: `--profile my_cluster.yaml` ([on SLURM](guides/on_slurm.md))."),
    Question(MACHINES, "Workers cannot be started", "sample output/nothing --workers slurm:nothing", "`--workers 4` starts processes on this machine, `--workers slurm:PROFILE` jobs."),

    Question(PYTHON, "The file is not there, in Python", ">>> xd.open_frames('run_42.h5')", "A notebook's folder is the one in which it lies, whatever the folder of JupyterLab. `os.getcwd()` prints it."),
    Question(PYTHON, "A named set is not known", ">>> xd.load('sim129')", "`xd.list_data()` lists the sets with their size."),
    Question(PYTHON, "A keyword is not known", ">>> xd.train(model='vae_kl', data='sim128', epochs=3)", "Keywords are the last parts of [words](reference/words.md); where that is ambiguous, give a mapping: `{'training.num_epochs': 3}`."),
    Question(PYTHON, "JupyterLab is missing", "lab --folder here", "`pip install 'xrddiff[lab]'`, or in a checkout `pip install '.[lab]'`. The tutorials are copied anyway, and run in any Jupyter with this environment's kernel."),
]  # fmt: skip


def prepare(folder: Path) -> None:
    """The files that the questions are about."""
    import h5py

    counts = np.random.default_rng(0).poisson(3, (8, 64, 64)).astype("int32")
    with h5py.File(folder / "run42.h5", "w") as file:
        file["entry/data/data"] = counts
    with h5py.File(folder / "two.h5", "w") as file:
        file["a"], file["b"] = counts, counts
    whole = (folder / "run42.h5").read_bytes()
    (folder / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("beam lost at 04:10\n")
    (folder / "pointer.h5").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134648\n")


def sentence(typed: str) -> str:
    """What xrddiff says to this. Raises `AssertionError` if it is no refusal of one line."""
    if typed.startswith(">>> "):
        said = _said_in_python(typed.removeprefix(">>> "))
    else:
        said = _said_on_the_command_line(typed)
    assert said and "\n" not in said and "Traceback" not in said, (typed, said)
    return said


def _said_on_the_command_line(typed: str) -> str:
    from xrddiff.app.verbs.main import main

    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        code = main(typed.split())
    assert code == 2, (typed, code, error.getvalue())
    return "\n".join(line for line in error.getvalue().splitlines() if line.startswith("xrddiff: "))


def _said_in_python(typed: str) -> str:
    import xrddiff as xd

    given = {"xd": xd}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(typed, given)
    except xd.BadInput as error:
        return f"BadInput: {error}"
    raise AssertionError(f"{typed} is not refused")


@contextlib.contextmanager
def provoked():
    """A folder with the files, in which the sentences are provoked, on a machine without JupyterLab and without a cluster."""
    before, hidden = Path.cwd(), {name: sys.modules.get(name) for name in ("jupyterlab",)}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        os.chdir(folder)
        sys.modules["jupyterlab"] = None  # an import of it fails
        try:
            yield
        finally:
            os.chdir(before)
            for name, module in hidden.items():
                sys.modules.pop(name)
                if module is not None:
                    sys.modules[name] = module


def questions_page() -> str:
    """The page: question, what was typed, what xrddiff said just now, what to do."""
    lines = [
        "# Questions",
        "",
        "What xrddiff says when something is wrong, and what to do. The sentences were provoked while this page was made, by the calls above them.",
        "",
    ]
    chapter = ""
    with provoked():
        for question in QUESTIONS:
            if question.chapter != chapter:
                chapter = question.chapter
                lines += [f"## {chapter}", ""]
            python = question.typed.startswith(">>> ")
            typed = question.typed.removeprefix(">>> ") if python else f"$ xrddiff {question.typed}"
            lines += [f"### {question.heading}", "", "```python" if python else "```console", typed]
            lines += (["```", "", "```text"] if python else []) + [
                sentence(question.typed),
                "```",
                "",
                question.answer,
                "",
            ]
    return "\n".join(lines)
