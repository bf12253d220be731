"""The parts that `medlt train` trains, in a module without imports, so that the help of the command can list them."""

PARTS = {
    "codec": ("codec",),
    "sparse": ("codec", "sparse"),
    "denoiser": ("codec", "verifiers", "denoiser"),
    "classifier": ("verifiers",),
    "epistemic": ("verifiers",),
}
"""Part -> the stages that train it and what it needs."""
