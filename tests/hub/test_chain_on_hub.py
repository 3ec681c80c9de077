"""A weight chain is pushed and pulled like a model, and expands the same students with and without the package."""

import hashlib
import json

import pytest
import torch

from reid_hub import WeightChain

from .client import run_python
from .conftest import small_model

EXPAND = """
import hashlib, json, sys
{imports}
from transformers import AutoModel
chain = AutoModel.from_pretrained("alice/chain"{trust})
digests = []
for width in json.loads(sys.argv[1]):
    digest = hashlib.sha256()
    for name, tensor in sorted(chain.expand(width).state_dict().items()):
        digest.update(tensor.numpy().tobytes())
    digests.append(digest.hexdigest())
print()
print(json.dumps([type(chain).__module__, digests]))
"""


def digests(chain: WeightChain, widths: list[int]) -> list[str]:
    found = []
    for width in widths:
        digest = hashlib.sha256()
        for _, tensor in sorted(chain.expand(width).state_dict().items()):
            digest.update(tensor.numpy().tobytes())
        found.append(digest.hexdigest())
    return found


@pytest.mark.parametrize("package", [True, False], ids=["package", "trusted code"])
def test_a_pulled_chain_expands_the_same_students(hub, tmp_path, monkeypatch, package):
    torch.manual_seed(0)
    teacher = small_model(0)
    chain = WeightChain.from_teacher(teacher, 2)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    chain.push_to_hub("alice/chain", token="hf_alice")
    files = hub.repo("alice/chain").commit().files
    assert {"weight_chain.py", "width_slots.py", "model.safetensors", "README.md"} <= set(files)
    card = files["README.md"].content.decode()
    assert 'AutoModel.from_pretrained("alice/chain")' in card
    assert "reid-hub expand alice/chain" in card

    widths = [2, 3, 4]
    imports, trust = ("import reid_hub", "") if package else ("", ", trust_remote_code=True")
    printed = run_python(
        EXPAND.format(imports=imports, trust=trust),
        hub.environment(tmp_path / "home", token=None),
        json.dumps(widths),
        package=package,
    )
    module, found = json.loads(printed.strip().splitlines()[-1])
    assert module.startswith("reid_hub") == package
    assert found == digests(chain, widths)
