"""The job of an exporter: a model, its history, and the form that its weights get."""

from dataclasses import dataclass

from mlxchat.checkpoint.history import History
from mlxchat.checkpoint.layout import SavedModel
from mlxchat.evaluate.temperature import NearestTemperatures
from mlxchat.interop.exporters.weights import WeightWriter


@dataclass(frozen=True)
class ExportJob:
    """A model on its way to another program.

    Attributes:
        saved: the model, its matrices in the dtype of the export.
        history: the origin of the model.
        weights: writes safetensors files, and reports progress.
        quantize: the type of the matrices, for a program that has types of its own; None for the
            default there.
        temperatures: the nearest ones, where the program has no soft cap.
    """

    saved: SavedModel
    history: History
    weights: WeightWriter
    quantize: str | None = None
    temperatures: NearestTemperatures | None = None
