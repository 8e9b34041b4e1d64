from __future__ import annotations

import hashlib
import importlib
import os
import pwd
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rayml.backbones import (
    ARCHITECTURES,
    MAX_IMAGE_SIZE_PX,
    TINY,
    BackboneSpec,
    _keras_home,
    backbone_spec,
    build_base,
    feature_model,
    file_sha256,
    preprocess_input,
    weights_sha256,
)
from rayml.errors import UsageError, WeightsError
from rayml.head import make_model
from tests.rayml.lively import drawings

OF_KERAS = sorted(set(ARCHITECTURES) - {TINY})


# --- the table


def test_the_table_holds_every_network_of_keras() -> None:
    import keras

    theirs = {name for name in dir(keras.applications) if name[0].isupper()}
    assert len(theirs) > 30
    assert {ARCHITECTURES[name].builder for name in OF_KERAS} == theirs


@pytest.mark.parametrize("name", OF_KERAS)
def test_each_name_leads_to_its_network(name: str) -> None:
    import keras

    architecture = ARCHITECTURES[name]
    builder = getattr(keras.applications, architecture.builder)
    module = importlib.import_module(f"keras.applications.{architecture.module}")
    implementation = importlib.import_module(module.preprocess_input.__module__)
    # ResNetV1 and V2 have one file and two ways of scaling.
    assert builder.__module__.split(".")[-1].removesuffix("_v2") in implementation.__name__
    assert architecture.min_image_size_px <= architecture.image_size_px <= architecture.max_image_size_px
    source = Path(str(importlib.import_module(builder.__module__).__file__)).read_text()
    if architecture.module == "resnet_v2":  # Built by the function of the first version.
        source = Path(str(importlib.import_module("keras.src.applications.resnet").__file__)).read_text()
    least = architecture.min_image_size_px
    assert f"min_size={least}," in source or f"rows < {least} or cols < {least}" in source


@pytest.mark.parametrize(
    ("name", "size_px"), [("xception", 71), ("mobilenet_v2", 32), ("efficientnetv2b0", 32), ("resnet50", 32)]
)
def test_the_least_size_can_be_built_and_less_is_refused(name: str, size_px: int) -> None:
    base = build_base(backbone_spec(name, "none", size_px))
    assert base.input_shape == (None, size_px, size_px, 3)
    assert min(base.output_shape[1:3]) >= 1
    assert base.trainable_variables == []
    with pytest.raises(UsageError, match=f"{size_px} to {MAX_IMAGE_SIZE_PX} px. Received: {size_px - 1}"):
        backbone_spec(name, "none", size_px - 1)


def test_tiny_has_a_range_of_its_own() -> None:
    from rayml.tiny import TINY_IMAGE_SIZES_PX

    smallest, largest = TINY_IMAGE_SIZES_PX
    for size_px in (smallest, largest):
        assert build_base(backbone_spec(TINY, None, size_px)).input_shape[1] == size_px
    for size_px in (smallest - 1, largest + 1):
        with pytest.raises(UsageError, match=f"{smallest} to {largest} px. Received: {size_px}"):
            backbone_spec(TINY, None, size_px)


# --- choosing


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("Xception", "xception"),
        ("MobileNetV2", "mobilenet_v2"),
        ("mobilenet-v2", "mobilenet_v2"),
        ("EfficientNet_V2_B0", "efficientnetv2b0"),
        ("ConvNeXtTiny", "convnext_tiny"),
        ("RESNET50", "resnet50"),
        ("resnet50v2", "resnet50_v2"),
        ("NASNetMobile", "nasnet_mobile"),
    ],
)
def test_spellings(spelling: str, name: str) -> None:
    assert backbone_spec(spelling, "none").name == name


def test_kerass_own_spellings_are_known() -> None:
    for name in OF_KERAS:
        assert backbone_spec(ARCHITECTURES[name].builder, "none").name == name


def test_defaults() -> None:
    assert backbone_spec() == BackboneSpec("xception", "imagenet", 150)
    assert backbone_spec("mobilenet_v2") == BackboneSpec("mobilenet_v2", "imagenet", 224)
    assert backbone_spec("tiny") == BackboneSpec("tiny", "builtin", 64)
    assert backbone_spec().weights_file is None


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (("mobilnet_v2",), "Received: mobilnet_v2", "Did you mean mobilenet_v2"),
        (("xeption",), "Received: xeption", "Did you mean xception"),
        (("",), "--backbone must be one of", "Take a name"),
        (("qqqq",), "--backbone must be one of", "Take a name"),
        (("xception", "none", 1025), "71 to 1024 px. Received: 1025", "150 px"),
        (("xception", "builtin"), "Only --backbone tiny", ""),
        (("tiny", "none"), "takes no others. Received: --weights none", "Leave --weights out"),
    ],
)
def test_choices_that_cannot_be(arguments: Any, words: str, hint: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        backbone_spec(*arguments)
    assert hint in caught.value.hint


# --- weights


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MobileNetV3Small's weights, of a seed of its own."""
    import keras

    keras.utils.set_random_seed(11)
    model = keras.applications.MobileNetV3Small(include_top=False, input_shape=(64, 64, 3), weights=None)
    path = tmp_path_factory.mktemp("weights") / "small.weights.h5"
    model.save_weights(path)
    return path


def test_a_file_gives_its_weights(small_weights: Path) -> None:
    spec = backbone_spec("mobilenet_v3_small", str(small_weights), 64)
    assert spec.weights_file == small_weights
    given, random = build_base(spec), build_base(backbone_spec("mobilenet_v3_small", "none", 64))
    assert not np.array_equal(given.get_weights()[0], random.get_weights()[0])
    digest = hashlib.sha256(small_weights.read_bytes()).hexdigest()
    assert weights_sha256(spec, given) == file_sha256(small_weights) == digest


def test_a_file_is_found_from_every_folder(
    small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial works in one of its own."""
    monkeypatch.chdir(small_weights.parent)
    spec = backbone_spec("mobilenet_v3_small", small_weights.name, 64)
    monkeypatch.chdir(tmp_path)
    assert spec == backbone_spec("mobilenet_v3_small", str(small_weights), 64)
    assert weights_sha256(spec, build_base(spec)) == file_sha256(small_weights)


def test_kerass_older_files_without_top_are_read(tmp_path: Path) -> None:
    import keras

    keras.utils.set_random_seed(12)
    model = keras.applications.MobileNetV3Small(include_top=False, input_shape=(64, 64, 3), weights=None)
    path = legacy_weights(model, tmp_path / "small_notop.h5")
    base = build_base(backbone_spec("mobilenet_v3_small", str(path), 64))
    for ours, theirs in zip(base.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_random_weights_are_the_same_everywhere() -> None:
    spec = backbone_spec("xception", "none", 71)  # Keras numbers some of its layers through the process.
    digest = weights_sha256(spec, build_base(spec))
    random.seed(3)
    before = random.getstate(), str(np.random.get_state())
    assert weights_sha256(spec, build_base(spec)) == digest
    assert (random.getstate(), str(np.random.get_state())) == before


def test_random_weights_leave_the_head_its_own_chance() -> None:
    heads = [make_model(weights="none", backbone="mobilenet_v3_small", image_size_px=32).layers[-1] for _ in range(2)]
    assert not np.array_equal(heads[0].get_weights()[0], heads[1].get_weights()[0])


def refused(path: Path, name: str = "mobilenet_v3_small") -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        build_base(backbone_spec(name, str(path), 64))
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert path.name in caught.value.message
    return caught.value


def test_weights_of_another_network(small_weights: Path) -> None:
    message = refused(small_weights, "mobilenet_v2").message
    assert "do not fit mobilenet_v2 without top: expected 260 arrays of 2,257,984 numbers" in message
    assert "Received: small.weights.h5 with " in message


def legacy_weights(model: Any, path: Path) -> Path:
    """The layout of Keras 2, in which keras.applications serves its files to this day."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return path


def test_weights_with_the_top(tmp_path: Path) -> None:
    """The older layout numbers all layers and does not fit; in the newer one the top's own are left aside."""
    import keras

    keras.utils.set_random_seed(13)
    model = keras.applications.MobileNetV2(input_shape=(64, 64, 3), weights=None, classes=10)
    error = refused(legacy_weights(model, tmp_path / "top.h5"), "mobilenet_v2")
    assert "without top: expected 260 arrays" in error.message
    assert "Received: top.h5 with 262 arrays" in error.message
    model.save_weights(tmp_path / "top.weights.h5")
    base = build_base(backbone_spec("mobilenet_v2", str(tmp_path / "top.weights.h5"), 64))
    for ours, theirs in zip(base.get_weights(), model.get_weights(), strict=False):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_weights_cut_short(small_weights: Path, tmp_path: Path, share: float) -> None:
    whole = small_weights.read_bytes()
    (tmp_path / "cut.weights.h5").write_bytes(whole[: int(len(whole) * share)])
    assert "damaged" in refused(tmp_path / "cut.weights.h5").message


@pytest.mark.parametrize("kind", [RuntimeError, KeyError])
def test_weights_that_h5py_stumbles_over(
    small_weights: Path, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeroes inside the file's own tables, as a broken copy has them."""
    import h5py
    import keras

    def stumble(*_: Any) -> None:
        raise kind("Unable to synchronously get group info (addr overflow)")

    monkeypatch.setattr(keras.Model, "load_weights", stumble)
    monkeypatch.setattr(h5py.Group, "visititems", stumble)
    assert "damaged" in refused(small_weights).message


def test_weights_with_a_number_that_is_none(small_weights: Path, tmp_path: Path) -> None:
    base = build_base(backbone_spec("mobilenet_v3_small", str(small_weights), 64))
    kernel = base.get_weights()
    kernel[0][0, 0, 0, 0] = np.nan
    base.set_weights(kernel)
    base.save_weights(tmp_path / "nan.weights.h5")
    with pytest.raises(WeightsError, match=r"must be finite numbers\. Received: nan\.weights\.h5"):
        build_base(backbone_spec("mobilenet_v3_small", str(tmp_path / "nan.weights.h5"), 64))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.keras", b"PK\x03\x04", ".weights.h5 or .h5. Received: model.keras"),
        ("model.pkl", b"\x80\x04", "Received: model.pkl"),
        ("text.h5", b"no weights", "must be an HDF5 file. Received: text.h5"),
        ("empty.weights.h5", b"", "must be an HDF5 file. Received: empty.weights.h5"),
    ],
)
def test_files_that_hold_no_weights(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=words) as caught:
        backbone_spec("mobilenet_v2", str(tmp_path / name))
    assert ".weights.h5" in caught.value.hint


def test_a_folder_or_nothing_is_no_weights_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.weights.h5", Path("imagnet")):
        with pytest.raises(WeightsError, match="imagenet, none or a file that is there"):
            backbone_spec("mobilenet_v2", str(path))


def test_imagenet_weights_are_fetched_by_one_process_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    inside: list[str] = []
    most: list[int] = []

    def fetch(**arguments: Any) -> Any:
        inside.append(arguments["weights"])
        most.append(len(inside))
        time.sleep(0.2)
        inside.pop()
        return SimpleNamespace()

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(keras.applications, "MobileNetV2", fetch)
    with ThreadPoolExecutor() as pool:
        list(pool.map(build_base, [backbone_spec("mobilenet_v2")] * 3))
    assert most == [1, 1, 1]


def test_a_user_without_a_home_folder_has_the_place_that_keras_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert _keras_home() == tmp_path
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    assert _keras_home() == Path("/tmp/.keras")


def test_imagenet_without_a_network_says_how_to_get_it(tmp_path: Path) -> None:
    """In a process of its own, whose only way out is a proxy that does not listen."""
    code = (
        "from rayml.backbones import backbone_spec, build_base\n"
        "from rayml.errors import WeightsError\n"
        "try:\n    build_base(backbone_spec('mobilenet_v2', 'imagenet', 96))\n"
        "except WeightsError as error:\n    print(error.message)\n    print(error.hint)"
    )
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **proxies, "KERAS_HOME": str(tmp_path), "NO_PROXY": "", "no_proxy": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "ImageNet" in line or "--weights" in line]
    assert len(lines) == 2, done.stdout
    assert "the ImageNet weights of mobilenet_v2 could not be downloaded: URL fetch failure on https://" in lines[0]
    assert "no_top.h5" in lines[0]
    assert "--weights FILE" in lines[1]
    assert "--weights none" in lines[1]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("Incomplete or corrupted file detected. The sha256 does not match."), "Incomplete or corrupted"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
    ],
)
def test_a_download_that_breaks(error: Exception, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    def fetch(**arguments: Any) -> Any:
        raise error

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(keras.applications, "MobileNetV2", fetch)
    with pytest.raises(WeightsError, match=f"could not be downloaded: .*{said}"):
        build_base(backbone_spec("mobilenet_v2"))


# --- the network


def test_the_feature_model_is_scaling_network_and_pooling() -> None:
    spec = backbone_spec("mobilenet_v3_small", "none", 64)
    base = build_base(spec)
    model = feature_model(spec, base)
    assert (model.inputs[0].name, model.inputs[0].dtype, model.input_shape) == ("images", "uint8", (None, 64, 64, 3))
    pixels, _ = drawings(4, 64)
    scaled = preprocess_input(spec.name, pixels.astype(np.float32))
    expected = np.asarray(base(scaled, training=False)).mean(axis=(1, 2))
    features = np.asarray(model(pixels))
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("xception", [-1.0, 0.0, 1.0]),
        ("mobilenet_v2", [-1.0, 0.0, 1.0]),
        ("efficientnetv2b0", [0.0, 127.5, 255.0]),  # scales inside
        ("tiny", [0.0, 127.5, 255.0]),  # scales inside
        ("vgg16", [0 - 103.939, 127.5 - 116.779, 255 - 123.68]),  # blue, green, red less their means
    ],
)
def test_each_network_gets_its_own_scaling(name: str, expected: list[float]) -> None:
    """The figures are those of the networks' papers and of keras.applications' documentation."""
    pixels = np.array([0.0, 127.5, 255.0], np.float32)
    if name == "vgg16":
        pixels = pixels[::-1]  # given as red, green, blue
    np.testing.assert_allclose(
        np.asarray(preprocess_input(name, pixels.reshape(1, 1, 1, 3).copy())).ravel(), expected, atol=1e-5
    )
