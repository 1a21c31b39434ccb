"""The methods' names as their papers write them, for tables, pages and charts. Keys stay in
CSV and configurations."""

METHOD_TITLES = {
    "zero_shot": "Zero-shot CLIP",
    "fedpgp": "FedPGP",
    "promptfl": "PromptFL",
    "coop": "CoOp",
    "promptfl_ft": "PromptFL + fine-tuning",
    "fedprox": "FedProx",
    "fedper": "FedPer",
    "ditto": "Ditto",
    "scaffold": "SCAFFOLD",
    "fedamp": "FedAMP",
    "fedotp": "FedOTP",
    "promptfolio": "PromptFolio",
    "fedtpg": "FedTPG",
    "dp_fpl": "DP-FPL",
    "fedpha": "FedPHA",
    "pfedmoap": "pFedMoAP",
    "pfedprompt": "pFedPrompt",
    "fedclip": "FedCLIP",
    "pfedmma": "pFedMMA",
    "fedmgp": "FedMGP",
    "fedmvp": "FedMVP",
    "cocoop": "CoCoOp",
    "kgcoop": "KgCoOp",
    "prograd": "ProGrad",
    "plot": "PLOT",
    "proda": "ProDA",
    "promptsrc": "PromptSRC",
    "maple": "MaPLe",
    "vpt": "VPT",
}
"""By configuration name. The order gives a method its colour and line on every page:
add new ones at the end."""


def title(method: str) -> str:
    """The method's name as its paper writes it; its key where it has none here."""
    return METHOD_TITLES.get(method, method)
