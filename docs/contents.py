"""What stands where on the documentation site, in reading order. A notebook or guide that is not named comes last in its chapter."""

from __future__ import annotations

# Rooms whose notebooks are no mathematics, and what their chapters in the reference are called.
ROOMS = {
    "front_door": "Front door in Python",
    "widgets": "Widgets",
    "headers": "Headers",
    "remote": "Frames on servers",
    "formats": "Formats",
    "loading": "Loading",
    "recipes": "Recipes",
    "training": "Training",
    "telemetry": "Telemetry",
    "inference": "Inference",
    "exports": "Exported models",
    "views": "Views",
    "ranks": "Ranks",
    "execution": "Execution",
    "streaming": "Streams of frames",
    "slurm": "SLURM",
    "studies": "Studies of many runs",
    "words": "Words of a run",
    "cli": "Command line",
    "runs": "Run notebooks",
    "": "Ground: errors, seeds, files, names, configuration",
}
# The mathematics in reading order: notebooks, and the rooms whose other notebooks follow them.
MATHEMATICS = {
    "What a detector measures": (
        "simulation/crystal simulation/scattering simulation/experiments simulation/simulate seeds frames/frames "
        "frames/geometry frames/noise frames/curves",
        "simulation",
    ),
    "What is no measurement, and what is a peak": (
        "frames/masks frames/quiet_areas frames/automask frames/peaks frames/peak_matching frames/labels",
        "frames",
    ),
    "What a network sees": (
        "transforms/values transforms/spatial transforms/topk transforms/pipelines transforms/limits",
        "transforms",
    ),
    "Autoencoders": (
        "losses models/layers models/autoencoder models/codebook models/latent_space",
        "",
    ),
    "Diffusion": (
        "diffusion/schedules diffusion/denoisers diffusion/objectives diffusion/samplers diffusion/analytic "
        "diffusion/keyed_sampling diffusion/guidance diffusion/inpainting diffusion/interpolation diffusion/tiling "
        "diffusion/particle_kernels diffusion/particles",
        "diffusion",
    ),
    "Networks": (
        "models/unet models/transformer models/dit models/conditioning models/autoregressive models/classifier "
        "models/peak_net models/generative",
        "models",
    ),
    "Lattices": (
        "indexing/cells indexing/rays indexing/orientations indexing/lattice_search indexing/refinement indexing/chance "
        "indexing/indexer indexing/lattice_maps indexing/integration indexing/reflections indexing/expected_intensities",
        "indexing",
    ),
    "Posteriors": (
        "posteriors/likelihoods metrics/coverage posteriors/latents posteriors/counts posteriors/crystals posteriors/crystal_densities "
        "posteriors/crystal_sampling posteriors/crystal_stills",
        "posteriors",
    ),
    "Judgement": (
        "metrics/peak_scores metrics/radial_profiles metrics/photons metrics/spots metrics/indexing metrics/merging "
        "metrics/diversity metrics/distribution metrics/encoder metrics/feature_distances metrics/judgement",
        "metrics",
    ),
}
# Guides in reading order: NAME of docs/guides/NAME.md, or another page of the repository.
GUIDES = [
    "docs/widgets.md",
    "docs/health.md",
    "docs/tracking.md",
    "docs/many_runs.md",
    "slurm/README.md",
    "docs/cluster_tour.md",
    "docs/exports.md",
    "docs/servers.md",
    "docs/streams.md",
    "examples/cpp/README.md",
]
# Pages of the repository that say what xrddiff is and how it is made.
ABOUT = [
    "docs/differences.md",
    "docs/architecture.md",
    "docs/security.md",
    "docs/contributing.md",
    "CHANGELOG.md",
]
