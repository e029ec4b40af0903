"""LightningModules for recipes, and the plain networks that they train."""

from lightning_effnn.modules.image_classifier import ImageClassifier
from lightning_effnn.modules.networks import LeNet5, ResNetCIFAR, SmallCNN

__all__ = ["ImageClassifier", "LeNet5", "ResNetCIFAR", "SmallCNN"]
