"""Every method by name. A new one is a file in this folder and a line here."""

from fedpgp.methods.base import Batch, Features, Images, Method, Own, Params, Round, Step, cosine_logits
from fedpgp.methods.cocoop import CoCoOp
from fedpgp.methods.coop import CoOp
from fedpgp.methods.ditto import Ditto
from fedpgp.methods.dp_fpl import DPFPL
from fedpgp.methods.fedamp import FedAMP
from fedpgp.methods.fedclip import FedCLIP
from fedpgp.methods.fedmgp import FedMGP
from fedpgp.methods.fedmvp import FedMVP
from fedpgp.methods.fedotp import FedOTP
from fedpgp.methods.fedper import FedPer
from fedpgp.methods.fedpgp import FedPGP
from fedpgp.methods.fedpha import FedPHA
from fedpgp.methods.fedprox import FedProx
from fedpgp.methods.fedtpg import FedTPG
from fedpgp.methods.kgcoop import KgCoOp
from fedpgp.methods.maple import MaPLe
from fedpgp.methods.pfedmma import PFedMMA
from fedpgp.methods.pfedmoap import PFedMoAP
from fedpgp.methods.pfedprompt import PFedPrompt
from fedpgp.methods.plot import Plot
from fedpgp.methods.proda import ProDA
from fedpgp.methods.prograd import ProGrad
from fedpgp.methods.promptfl import PromptFL
from fedpgp.methods.promptfl_ft import PromptFLFT
from fedpgp.methods.promptfolio import PromptFolio
from fedpgp.methods.promptsrc import PromptSRC
from fedpgp.methods.scaffold import Scaffold
from fedpgp.methods.vpt import VPT
from fedpgp.methods.zero_shot import ZeroShot

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        ZeroShot,
        CoOp,
        PromptFL,
        PromptFLFT,
        FedProx,
        FedPer,
        Ditto,
        Scaffold,
        FedPGP,
        FedOTP,
        PromptFolio,
        FedTPG,
        DPFPL,
        FedPHA,
        PFedMoAP,
        PFedPrompt,
        FedAMP,
        PFedMMA,
        FedMGP,
        FedMVP,
        FedCLIP,
        CoCoOp,
        Plot,
        ProDA,
        ProGrad,
        KgCoOp,
        PromptSRC,
        MaPLe,
        VPT,
    )
}

__all__ = ["METHODS", "Batch", "Features", "Images", "Method", "Own", "Params", "Round", "Step", "cosine_logits"]
