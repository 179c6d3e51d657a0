"""The certificate for people."""

from collections.abc import Mapping
from typing import Any

Facts = Mapping[str, Any]


def render(facts: Facts) -> str:
    """CERTIFICATE.md of the facts in certificate.json."""
    site, model, edit = facts["site"], facts["model"], facts["edit"]
    looks = f"{model['size']}x{model['size']} pixels, mean {model['mean']}, std {model['std']}"
    share = f"{edit['changed']} of {edit['entries']} ({edit['share']:.3%}), in {len(edit['tensors'])} tensors"
    verb = {"stain": "Stain", "lock": "Lock"}[facts["scheme"]]
    lines = [
        f"# {verb} in {model['source']}",
        "",
        "This page and certificate.json tell no secret; **key.safetensors and the pictures are secret.** Keep them, "
        "and publish the commitment now, where its date can be proved later.",
        "",
        f"    commitment (SHA-256 of the key)  {facts['commitment']}",
        f"    weights before                   {model['weights_before']}",
        f"    weights after                    {model['weights_after']}",
        *(f"    {name:<32} {digest}" for name, digest in facts["files"].items()),
        "",
        "## The edit",
        "",
        "| what | |",
        "|---|---|",
        f"| architecture | {model['arch']} |",
        f"| images | {looks} |",
        f"| layer | `{site['layer']}` ({site['activation']}) |",
        f"| neurons | {facts['neurons']} |",
        f"| τ, Δ | {facts['tau']:g}, {facts['response']:g} |",
        f"| T of each neuron | {', '.join(f'{peak:.4g}' for peak in facts['peaks'])} |",
        f"| weights changed | {share} |",
        *(f"| {name} | {value:.1%} |" for name, value in facts["behaviour"].items()),
        "",
        f"The last lines compare labels with those of the model before, on {facts['images']} ({facts['looked_at']} of "
        "them); they say how much is given away, not how accurate the model is.",
        "",
        "## Guarantees",
        "",
        *_guarantees(facts),
        *_loading(facts),
        "",
        "Made with " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()) + ".",
    ]
    return "\n".join(lines) + "\n"


def _guarantees(facts: Facts) -> list[str]:
    verdict = (
        "* **Verdict by weights.** A model that is independent of the key gets p ≤ α with a probability of at most α, "
        "for every α and whatever its weights are: directions were drawn uniformly, and p is the area of a spherical "
        "cap. Nothing else is assumed but that the commitment is older than the suspect."
    )
    images = facts["images"]
    if facts["scheme"] == "lock":
        bound = facts["figures"]["fpr_bound"]
        return [
            verdict,
            f"* **False fires, hold-out (Clopper–Pearson, 95 %).** A detector fires without its patch on at most "
            f"{bound:.3%} of images like these: {facts['held']} {images} that chose nothing.",
        ]
    seen = facts["false_fires"]
    return [
        verdict,
        f"* **False fires, hold-out (Clopper–Pearson, 95 %).** {seen['fired']} of {seen['images']} {images} fire the "
        f"neuron that fires most; on at most {seen['holdout_bound']:.3%} of images like these it does.",
        f"* **False fires, average of caps.** Over fresh directions these images fire with probability "
        f"{seen['mean_cap']:.3g} (union over {seen['places']} places); with what pays for the sample (95 %) at most "
        f"{seen['averaged_cap_bound']:.3g}; the one of the longest features {seen['largest_norm_cap']:.3g}. These "
        "three take the response T as fixed before the directions were drawn, which it was not; the hold-out does not.",
    ]


def _loading(facts: Facts) -> list[str]:
    if facts["additions"]:
        return [
            "",
            "## Loading",
            "",
            "Gates were appended, so the module structure has changed: before `load_state_dict`, call "
            "`hallmark.models.excite.append_all(model, certificate['additions'])`.",
        ]
    return ["", "The structure of the model and the names of its weights are as before: load it as you load yours."]
