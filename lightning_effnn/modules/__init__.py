"""LightningModules for recipes, and the plain networks that they train."""

from lightning_effnn.modules.image_classifier import ImageClassifier
from lightning_effnn.modules.lpgnas import LPGNAS
from lightning_effnn.modules.minilm import MiniLM, MiniLMTokenizer, minilm_folder
from lightning_effnn.modules.networks import LeNet5, Normalized, ResNetCIFAR, SmallCNN
from lightning_effnn.modules.node_classifier import NodeClassifier
from lightning_effnn.modules.pde_solver import PDESolver
from lightning_effnn.modules.sequence_to_sequence import SequenceToSequence
from lightning_effnn.modules.text_transformer import TextTransformer

__all__ = [
    "LPGNAS",
    "ImageClassifier",
    "LeNet5",
    "MiniLM",
    "MiniLMTokenizer",
    "NodeClassifier",
    "Normalized",
    "PDESolver",
    "ResNetCIFAR",
    "SequenceToSequence",
    "SmallCNN",
    "TextTransformer",
    "minilm_folder",
]
