"""Makes the .pt files beside it. They were made with torch 2.13: python make_torch_files.py"""

from pathlib import Path

import torch

HERE = Path(__file__).parent
NUMBERS = torch.arange(12, dtype=torch.float32).reshape(3, 4) / 8


def state_dict() -> dict[str, torch.Tensor]:
    model = torch.nn.ModuleDict({"c_q": torch.nn.Linear(4, 3, bias=False)})
    model["wte"] = torch.nn.Embedding(3, 4, dtype=torch.bfloat16)
    with torch.no_grad():
        model["c_q"].weight.copy_(NUMBERS)
        model["wte"].weight.copy_(-NUMBERS)
    return model.state_dict()


def optimizers() -> list[dict]:
    parameters = [torch.nn.Parameter(NUMBERS.clone()), torch.nn.Parameter(NUMBERS.bfloat16())]
    adamw = torch.optim.AdamW(
        [{"params": [parameters[0]], "lr": 0.25}, {"params": [parameters[1]], "lr": 0.5}],
        betas=(0.75, 0.5),
    )
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    adamw.step()
    muon = {
        "state": {0: {"momentum_buffer": NUMBERS}},
        "param_groups": [{"lr": 0.02, "momentum": 0.95, "nesterov": True, "params": [0]}],
    }
    return [adamw.state_dict(), muon]


def everything() -> dict:
    dtypes = ["float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]
    return {
        "transposed": NUMBERS.t(),
        "rows": NUMBERS[1:],
        "column": NUMBERS[:, 2],
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(NUMBERS),
        "dtypes": {name: torch.tensor([0, 1, 1]).to(getattr(torch, name)) for name in dtypes},
        "plain": (None, True, 3, 2**40, -(2**40), 1.5, "é", [], {}, ()),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "shape": NUMBERS.shape,
    }


if __name__ == "__main__":
    torch.save(state_dict(), HERE / "state_dict.pt")
    torch.save(optimizers(), HERE / "optimizers.pt")
    torch.save(everything(), HERE / "everything.pt")
    torch.save(NUMBERS, HERE / "before_1_6.pt", _use_new_zipfile_serialization=False)
