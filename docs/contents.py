"""What stands where on the documentation site, in reading order. A notebook or guide that is not named comes last in its chapter."""

from __future__ import annotations

# Rooms whose notebooks are no mathematics, and what their chapters in the reference are called, by wing.
ROOMS = {
    "app/front_door": "Front door in Python",
    "app/widgets": "Widgets",
    "app/verbs": "Command line",
    "app": "The command xrddiff",
    "data/headers": "Headers",
    "data/remote": "Frames on servers",
    "data/formats": "Formats",
    "learn/loading": "Loading",
    "learn/recipes": "Recipes",
    "learn/training": "Training",
    "learn/telemetry": "Telemetry",
    "judge/inference": "Inference",
    "judge/exports": "Exported models",
    "judge/views": "Views",
    "run/execution": "Execution",
    "run/streaming": "Streams of frames",
    "run/slurm": "SLURM",
    "run/studies": "Studies of many runs",
    "runs": "Run notebooks",
    "config/words": "Words of a run",
    "config": "From words to settings",
    "core/ranks": "Ranks",
    "core": "Errors, seeds, files, names, child processes",
}
# The mathematics in reading order: FOLDER: NOTEBOOKS, and FOLDER: … for the others of that folder.
MATHEMATICS = {
    "What a detector measures": (
        "physics/simulation: crystal scattering spectra experiments simulate crystal_files own_experiments",
        "core: seeds",
        "data/frames: frames geometry noise curves",
        "physics/simulation: …",
    ),
    "What is no measurement, and what is a peak": (
        "data/frames: masks bit_images quiet_areas shadows automask peaks peak_matching labels …",
    ),
    "What a network sees": ("data/transforms: values spatial pipelines …",),
    "Autoencoders": (
        "learn: losses",
        "learn/models: layers autoencoder codebook latent_space",
    ),
    "Diffusion": (
        "learn/diffusion: schedules denoisers objectives samplers analytic keyed_sampling guidance inpainting interpolation tiling particle_kernels particles …",
    ),
    "Networks": ("learn/models: unet transformer conditioning autoregressive classifier peak_net generative …",),
    "Lattices": (
        "physics/indexing: cells rays orientations lattice_search refinement chance indexer lattice_maps integration reflections expected_intensities …",
    ),
    "Twins of a detector": ("physics/twins: measured_backgrounds spot_shapes indexed_exposures twin …",),
    "Posteriors": (
        "judge/posteriors: likelihoods",
        "judge/metrics: coverage",
        "judge/posteriors: crystals crystal_densities crystal_sampling crystal_stills …",
    ),
    "Judgement": ("judge/metrics: radial_profiles reconstruction physics merging diversity distribution judgement …",),
}
# Guides in reading order: NAME of docs/guides/NAME.md, or another page of the repository.
GUIDES = [
    "docs/commands.md",
    "docs/widgets.md",
    "docs/health.md",
    "docs/ruler.md",
    "docs/tracking.md",
    "docs/many_runs.md",
    "slurm/README.md",
    "docs/cluster_tour.md",
    "docs/formats.md",
    "docs/exports.md",
    "docs/servers.md",
    "docs/streams.md",
    "docs/scale.md",
    "examples/cpp/README.md",
]
# Pages of the repository that say what xrddiff is and how it is made.
ABOUT = [
    "docs/differences.md",
    "docs/replaced.yaml",
    "docs/architecture.md",
    "docs/security.md",
    "docs/contributing.md",
    "CHANGELOG.md",
]
