"""Pulling a checkpoint by name into a fresh process, over HTTP: with the package, and without it."""

import json
import re
import socket
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from reid_hub import ReIDConfig, ReIDImageProcessor, ReIDModel
from reid_hub.hub.push import push_folder
from reid_hub.methods.compression import compress_model

from .client import run_python
from .conftest import small_model
from .minihub import MiniHub

IMAGES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (80, 40, 3), np.uint8)) for i in range(2)]
PREAMBLE = """
import json, sys
import numpy as np
from PIL import Image
images = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (80, 40, 3), np.uint8)) for i in range(2)]
"""
WITH_PACKAGE = """
import reid_hub
from transformers import AutoImageProcessor, AutoModel, pipeline
def load(**options):
    return AutoModel.from_pretrained("alice/m", **options)
pixels = AutoImageProcessor.from_pretrained("alice/m")(images, return_tensors="pt")["pixel_values"]
pipe = pipeline("image-feature-extraction", model="alice/m", pool=True, return_tensors=True)
exec(sys.argv[2])  # the example of the card
print(json.dumps({
    "example": ids[0].tolist(),
    "main": load()(pixels).embeddings.tolist(),
    "v1": load(revision="v1").encode(images, flip=False).tolist(),
    "commit": load(revision=sys.argv[1]).encode(images, flip=False).tolist(),
    "pipeline": [pipe(image)[0].tolist() for image in images],
    "training": load().training,
}))
"""
WITHOUT_PACKAGE_CODE = """
try:
    import reid_hub
except ImportError:
    pass
else:
    raise SystemExit("reid_hub can be imported here: the test would prove nothing")
from transformers import AutoImageProcessor, AutoModel
try:
    AutoModel.from_pretrained("alice/m")
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    raise SystemExit("the code ran without being trusted")
def load(**options):
    return AutoModel.from_pretrained("alice/m", trust_remote_code=True, **options)
processor = AutoImageProcessor.from_pretrained("alice/m", trust_remote_code=True)
model = load()
print()  # ends transformers' question whether to trust the code
print(json.dumps({
    "main": model(**processor(images, return_tensors="pt")).embeddings.tolist(),
    "v1": load(revision="v1").encode(images, flip=False).tolist(),
    "module": type(model).__module__,
}))
"""


def embed(seed: int) -> np.ndarray:
    """What the published weights of this seed give, by the model that was never saved."""
    model = small_model(seed)
    pixels = ReIDImageProcessor.from_config(model.config)(IMAGES, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        return model(pixels).embeddings.numpy()


def compressed_model() -> ReIDModel:
    """Pruned to 16 numbers of one byte each, with a scale that three batches have taught."""
    model = compress_model(small_model(0), "pruned", 16, quantization="int8", granularity="dimension")
    model.compression.kept.copy_(torch.arange(0, 256, 16))
    for seed in range(3):
        model.train()(torch.randn(4, 3, 64, 32, generator=torch.Generator().manual_seed(seed)))
    return model.eval()


def model_with_memory() -> ReIDModel:
    """A side network of version 2 beside a small ResNet, in the middle of a training."""
    torch.manual_seed(0)
    model = ReIDModel(ReIDConfig.from_variant("res18-x0.25-ptl", side={"cell": "v2"}, image_size=[64, 32])).train()
    model(torch.randn(4, 3, 64, 32))
    assert model.memory()
    return model.eval()


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """alice/m with two versions, the first tagged v1, and alice/hidden, which is private."""
    folder = tmp_path_factory.mktemp("published") / "checkpoint"
    with MiniHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        small_model(seed=0).save_pretrained(folder)
        first = push_folder(folder, "alice/m", token="hf_alice")
        hub.repo("alice/m").tags["v1"] = first.oid
        small_model(seed=1).save_pretrained(folder)
        push_folder(folder, "alice/m", token="hf_alice")
        push_folder(folder, "alice/hidden", private=True, token="hf_alice")
        compressed_model().save_pretrained(folder)
        push_folder(folder, "alice/int8", token="hf_alice")
        model_with_memory().save_pretrained(folder)
        push_folder(folder, "alice/ptl", token="hf_alice")
        yield SimpleNamespace(hub=hub, first=first.oid)


def test_with_the_package_then_from_the_cache_without_a_network(published, tmp_path):
    card = published.hub.repo("alice/m").commit().files["README.md"].content.decode()
    example = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    names = re.findall(r'"([^"]+\.jpg)"', example)
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        IMAGES[number % 2].save(tmp_path / name)
    arguments = (published.first, f"import os; os.chdir({str(tmp_path)!r})\n{example}")
    environment = published.hub.environment(tmp_path / "home", token=None)

    online = json.loads(run_python(PREAMBLE + WITH_PACKAGE, environment, *arguments))
    for name, seed in (("main", 1), ("v1", 0), ("commit", 0), ("pipeline", 1)):
        np.testing.assert_allclose(np.squeeze(online[name]), embed(seed), rtol=1e-4, atol=1e-5)
    assert not np.allclose(embed(0), embed(1), rtol=1e-2)
    assert online["training"] is False
    # names: three of the gallery, then the query, which is a copy of the second
    assert online["example"][0] == names[1]
    assert sorted(online["example"]) == sorted(names[:3])

    published.hub.requests.clear()
    offline = json.loads(run_python(PREAMBLE + WITH_PACKAGE, environment | {"HF_HUB_OFFLINE": "1"}, *arguments))
    assert offline == online
    assert published.hub.requests == []


def test_codes_of_a_compressed_model_with_and_without_the_package(published, tmp_path):
    """The scale travels: both give the codes of the model that was never saved; the card's example searches them."""
    card = published.hub.repo("alice/int8").commit().files["README.md"].content.decode()
    example = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert 'codec="int8"' in example
    assert "| Stored as | 16 bytes (int8, one scale per dimension) |" in card
    for number, name in enumerate(re.findall(r'"([^"]+\.jpg)"', example)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        IMAGES[number % 2].save(tmp_path / name)
    expected = compressed_model().encode(IMAGES, precision="int8").tolist()
    environment = published.hub.environment(tmp_path / "home", token=None)
    code = f"import os; os.chdir({str(tmp_path)!r})\n{example}\n"
    code += "codes = model.encode(images, precision='int8').tolist()\n"
    code += "print(json.dumps([codes, ids[0].tolist(), float(distances.min())]))"
    with_package = json.loads(run_python(PREAMBLE + code, environment))
    assert with_package[0] == expected
    assert with_package[1][0] == "cam2/anna.jpg"  # the copy of the query
    assert with_package[2] == pytest.approx(0, abs=1e-6)
    code = """
from transformers import AutoModel
model = AutoModel.from_pretrained("alice/int8", trust_remote_code=True)
print()
print(json.dumps(model.encode(images, precision="int8").tolist()))
"""
    assert json.loads(run_python(PREAMBLE + code, environment, package=False).splitlines()[-1]) == expected


def test_without_the_package_only_when_trusted(published, tmp_path):
    environment = published.hub.environment(tmp_path, token=None)
    output = run_python(PREAMBLE + WITHOUT_PACKAGE_CODE, environment, package=False)
    loaded = json.loads(output.splitlines()[-1])
    np.testing.assert_allclose(loaded["main"], embed(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loaded["v1"], embed(0), rtol=1e-4, atol=1e-5)
    assert loaded["module"].startswith("transformers_modules.")


def test_a_side_network_without_the_package(published, tmp_path):
    code = """
from transformers import AutoModel
model = AutoModel.from_pretrained("alice/ptl", trust_remote_code=True)
print()
print(json.dumps([model.encode(images, flip=False).tolist(), len(model.memory())]))
"""
    environment = published.hub.environment(tmp_path, token=None)
    vectors, remembered = json.loads(run_python(PREAMBLE + code, environment, package=False).splitlines()[-1])
    np.testing.assert_allclose(vectors, model_with_memory().encode(IMAGES, flip=False), rtol=1e-4, atol=1e-5)
    assert remembered == 0


BACKBONE = """
import json, torch
pixels = torch.linspace(-1, 1, 3 * 64 * 32).reshape(1, 3, 64, 32)
from transformers import AutoBackbone
{load}
print()
print(json.dumps([backbone.channels, *[maps.tolist() for maps in backbone(pixels).feature_maps]]))
"""


def test_the_backbone_by_auto_backbone(published, tmp_path):
    """Out of the whole model with the package; published on its own, also without it."""
    environment = published.hub.environment(tmp_path, token="hf_alice")
    load = """
import reid_hub
backbone = AutoBackbone.from_pretrained("alice/m", out_features=["stage1", "stage4"])
backbone.push_to_hub("alice/backbone")
"""
    channels, *maps = json.loads(run_python(BACKBONE.format(load=load), environment).splitlines()[-1])
    assert channels == [32, 256]
    with torch.inference_mode():
        stages = small_model(1).backbone.stages(torch.linspace(-1, 1, 3 * 64 * 32).reshape(1, 3, 64, 32))
    for found, expected in zip(maps, (stages[1], stages[4]), strict=True):
        torch.testing.assert_close(torch.tensor(found), expected)
    load = 'backbone = AutoBackbone.from_pretrained("alice/backbone", trust_remote_code=True)'
    without = json.loads(run_python(BACKBONE.format(load=load), environment, package=False).splitlines()[-1])
    assert without == [channels, *maps]


def error(name: str, tmp_path, **options) -> str:
    with pytest.raises(OSError) as caught:
        AutoModel.from_pretrained(name, cache_dir=tmp_path, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "token"), [("alice/hidden", None), ("alice/hidden", "hf_bob"), ("alice/absent", None)]
)
def test_what_may_not_be_read_does_not_exist(published, log_in, tmp_path, name, token):
    log_in(published.hub.url, token)
    message = error(name, tmp_path)
    assert f"{name} is not a local folder and is not a valid model identifier" in message
    assert "private repository, make sure to pass a token" in message


def test_whoever_may_read_it_can(published, log_in, tmp_path):
    log_in(published.hub.url, "hf_alice")
    assert AutoModel.from_pretrained("alice/hidden", cache_dir=tmp_path).embedding_dim == 256


def test_a_wrong_token_and_a_wrong_revision(published, log_in, tmp_path):
    log_in(published.hub.url, "hf_wrong")
    assert "Invalid credentials" in error("alice/m", tmp_path)
    log_in(published.hub.url, None)
    assert "v9 is not a valid git identifier" in error("alice/m", tmp_path, revision="v9")


def test_offline_before_anything_was_loaded(published, log_in, tmp_path, monkeypatch):
    log_in(published.hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    published.hub.requests.clear()
    message = error("alice/m", tmp_path)
    assert "We couldn't connect to" in message
    assert "couldn't find them in the cached files" in message
    assert published.hub.requests == []


@pytest.mark.slow  # the client itself waits 23 s between its attempts
def test_no_network(log_in, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        log_in(url)
        assert f"We couldn't connect to '{url}'" in error("alice/m", tmp_path)
