from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from rayml.engines import Engine, load_engine
from rayml.engines.tensorflow import TensorFlowEngine
from rayml.errors import BundleError, UsageError
from rayml.graph import attach_head
from rayml.head import HeadWeights
from tests.rayml import small

ONNX_ENGINES = ("openvino", "onnxruntime")
linux = pytest.mark.skipif(sys.platform != "linux", reason="what is held in files there is held in memory elsewhere")


@pytest.fixture(scope="module")
def model() -> bytes:
    return attach_head(small.backbone().SerializeToString(), small.head())


@pytest.fixture(scope="module", params=[("openvino", 1), ("openvino", 2), ("onnxruntime", None)])
def engine(request: pytest.FixtureRequest, model: bytes) -> Engine:
    name, streams = request.param
    return load_engine(model, name, threads=2, streams=streams)


def test_what_an_engine_says_of_itself(engine: Engine) -> None:
    assert engine.name in ONNX_ENGINES
    assert (engine.image_size_px, engine.outputs, engine.threads) == (small.SIZE_PX, 3, 2)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 17])
def test_any_number_of_pictures_as_numpy_has_it(engine: Engine, count: int) -> None:
    images = small.pictures(count)
    logits = engine(images)
    assert (logits.dtype, logits.shape, logits.flags.c_contiguous) == (np.float32, (count, 3), True)
    np.testing.assert_allclose(logits, small.head().logits(small.features_of(images)), rtol=1e-4, atol=1e-4)


def test_answers_are_the_callers_own(engine: Engine) -> None:
    images = small.pictures(2)
    first = engine(images)
    kept = first.copy()
    engine(images[::-1])
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    np.testing.assert_array_equal(engine(images), kept)


def test_a_view_is_read_as_it_is_seen(engine: Engine) -> None:
    images = small.pictures(3)
    np.testing.assert_array_equal(engine(images[:, :, ::-1]), engine(images[:, :, ::-1].copy()))


def test_many_threads_get_their_own_answers(engine: Engine) -> None:
    images = small.pictures(64)
    expected = engine(images)
    with ThreadPoolExecutor(12) as pool:
        for _ in range(5):
            rows = list(pool.map(lambda i: engine(images[i : i + 3]), range(62)))
            for i, row in enumerate(rows):
                np.testing.assert_allclose(row, expected[i : i + 3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 24, 24, 4), (1, 25, 24, 3), (24, 24, 3)])
def test_other_shapes_are_refused(engine: Engine, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(N, 24, 24, 3\)"):
        engine(np.zeros(shape, np.uint8))


def test_other_types_are_refused(engine: Engine) -> None:
    wrong: Any = np.zeros((1, 24, 24, 3), np.float32)
    with pytest.raises(ValueError, match="Received: float32"):
        engine(wrong)


def test_openvino_computes_in_float32_unpinned(model: bytes) -> None:
    compiled = load_engine(model, "openvino", threads=2, streams=2)._compiled  # type: ignore[attr-defined]
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
    assert compiled.get_property("NUM_STREAMS") == 2
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2


def test_after_an_interrupted_call_openvino_goes_on(model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    engine = load_engine(model, "openvino", threads=2, streams=2)
    images = small.pictures(8)
    expected = engine(images)
    wait, interruptions = openvino.InferRequest.wait, list[KeyboardInterrupt]()

    def interrupted(request: Any) -> None:
        if interruptions:
            raise interruptions.pop()  # While the request is at work.
        wait(request)

    monkeypatch.setattr(openvino.InferRequest, "wait", interrupted, raising=False)
    for part in (images, images[:1]):
        interruptions.append(KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            engine(part)
        assert interruptions == []
        np.testing.assert_array_equal(engine(images), expected)


def test_bfloat16_is_computed_where_the_processor_has_it_and_refused_elsewhere(
    model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openvino

    has_it = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if has_it:
        compiled = load_engine(model, "auto", threads=1, precision="bfloat16")._compiled  # type: ignore[attr-defined]
        assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "bf16"
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(UsageError, match="needs a processor"):
        load_engine(model, "openvino", threads=1, precision="bfloat16")


@pytest.mark.parametrize(("name", "precision"), [("onnxruntime", "bfloat16"), ("auto", "int8"), ("auto", "")])
def test_precisions_that_are_refused(model: bytes, name: str, precision: str) -> None:
    with pytest.raises(UsageError, match="Received"):
        load_engine(model, name, precision=precision)


def test_auto_prefers_openvino(model: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model)
    assert load_engine(tmp_path / "model.onnx").name == "openvino"


def _without(packages: str, code: str) -> str:
    """What a fresh Python prints in which the packages are not installed: importing them raises as if so."""
    hide = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name in {packages.split()!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    done = subprocess.run([sys.executable, "-c", hide + code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip()


def test_auto_falls_back_to_onnxruntime(model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model)
    code = (
        f"from pathlib import Path\nfrom rayml.engines import load_engine\nprint(load_engine(Path({str(path)!r})).name)"
    )
    assert _without("openvino", code) == "onnxruntime"


@pytest.mark.parametrize(
    ("packages", "name", "extra"),
    [
        ("openvino", "openvino", "pip install openvino"),
        ("onnxruntime", "onnxruntime", "pip install onnxruntime"),
        ("openvino onnxruntime", "auto", "pip install openvino or pip install onnxruntime"),
    ],
)
def test_a_missing_package_says_how_it_is_installed(packages: str, name: str, extra: str) -> None:
    code = (
        "from rayml.engines import load_engine\nfrom rayml.errors import UsageError\n"
        f"try:\n    load_engine(b'', {name!r})\nexcept UsageError as error:\n    print(error.hint)"
    )
    assert _without(packages, code) == extra


def test_an_engines_own_missing_part_is_not_hidden(model: bytes) -> None:
    code = (
        "from rayml.engines import load_engine\n"
        "try:\n    load_engine(b'', 'openvino')\nexcept ModuleNotFoundError as error:\n    print(error.name)"
    )
    assert _without("openvino._pyopenvino", code) == "openvino._pyopenvino"


@pytest.mark.parametrize("name", ONNX_ENGINES)
def test_a_graph_that_an_engine_does_not_accept(name: str) -> None:
    unknown = small.backbone()
    unknown.graph.node[-1].op_type = "NoSuchOperator"
    with pytest.raises(BundleError, match="must accept the graph"):
        load_engine(unknown.SerializeToString(), name)
    with pytest.raises(BundleError, match=r"must accept the graph|expected an ONNX graph"):
        load_engine(b"no graph", name)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "tpu"}, "engine must be one of auto, openvino, onnxruntime. Received: 'tpu'"),
        ({"threads": 0}, "threads=0"),
        ({"name": "onnxruntime", "threads": -1}, "threads=-1"),
        ({"name": "openvino", "streams": 0}, "streams=0"),
    ],
)
def test_wrong_settings(model: bytes, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_engine(model, **settings)


def test_a_graph_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"missing\.onnx"):
        load_engine(tmp_path / "missing.onnx")


def test_an_answer_does_not_depend_on_its_neighbours(engine: Engine) -> None:
    images = small.pictures(9)
    np.testing.assert_array_equal(engine(images), np.concatenate([engine(images[i : i + 1]) for i in range(9)]))


def test_importing_engines_loads_none() -> None:
    code = (
        "import sys, rayml.engines, rayml.predictor\n"
        "print(sorted({'tensorflow', 'openvino', 'onnxruntime', 'onnx', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_all_engines_agree_with_keras_on_pictures() -> None:
    """A real network, 52 convolutions deep: the engines differ from Keras, as it runs, by float32 rounding only."""
    import keras
    import onnx
    import tensorflow as tf
    import tf2onnx

    size_px = 96
    keras.utils.set_random_seed(3)
    images = keras.Input((size_px, size_px, 3), dtype="uint8", name="images")
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1)(images)
    base = keras.applications.MobileNetV2(
        input_shape=(size_px, size_px, 3), alpha=0.35, include_top=False, weights=None, pooling="avg"
    )
    # Fresh, this network's values fade to 1e-11 on their way, and any two engines would agree.
    random = np.random.default_rng(3)
    for kernel in (weight for weight in base.weights if len(weight.shape) == 4):
        fan_in = kernel.shape[0] * kernel.shape[1] * (1 if "depthwise" in kernel.path else kernel.shape[2])
        kernel.assign(random.normal(scale=(2 / fan_in) ** 0.5, size=kernel.shape))
    network = keras.Model(images, base(scaled, training=False))
    signature = [tf.TensorSpec((None, size_px, size_px, 3), tf.uint8, name="images")]
    function = tf.function(lambda images: tf.identity(network(images, training=False)), input_signature=signature)
    proto, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=17)
    proto.graph.node.append(onnx.helper.make_node("Identity", [proto.graph.output[0].name], ["features"]))
    proto.graph.output[0].name = "features"

    drawn = small.pictures(12, size_px=size_px)
    reference = TensorFlowEngine(network)
    expected = reference(drawn)
    assert (reference.image_size_px, reference.outputs, expected.shape) == (96, 1280, (12, 1280))
    assert expected.std(axis=0).max() > 1e-3  # the pictures give different features, so agreement says something
    weights = small.head(features=1280, classes=10)
    labels = weights.logits(expected).argmax(axis=1)
    for name in ONNX_ENGINES:
        features = load_engine(proto.SerializeToString(), name, threads=2)(drawn)
        np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        logits = load_engine(attach_head(proto.SerializeToString(), weights), name, threads=2)(drawn)
        np.testing.assert_allclose(logits, weights.logits(expected), rtol=0, atol=1e-4 * np.abs(logits).max())
        assert (logits.argmax(axis=1) == labels).all()


def test_the_reference_engine_refuses_other_models() -> None:
    import keras

    with pytest.raises(ValueError, match="the model must be"):
        TensorFlowEngine(keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)]))


FIRST_CALLS = """
import sys, threading
import numpy as np
from pathlib import Path
from rayml.engines import load_engine

engine = load_engine(Path(sys.argv[1]), "openvino", 2)
picture = np.zeros((1, engine.image_size_px, engine.image_size_px, 3), np.uint8)
sys.setswitchinterval(1e-5)
together = threading.Barrier(4)
threads = [threading.Thread(target=lambda: (together.wait(), engine(picture))) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_threads_may_make_the_first_calls_together(model: bytes, tmp_path: Path) -> None:
    """OpenVINO's binding deadlocked in a third of such starts before an engine made its first call itself."""
    graph = tmp_path / "model.onnx"
    graph.write_bytes(model)
    for _ in range(4):
        subprocess.run([sys.executable, "-c", FIRST_CALLS, str(graph)], check=True, timeout=60)


@linux
def test_openvino_keeps_the_weights_in_memory_once() -> None:
    features, units = small.head().features, 500_000  # 22 MB
    wide = HeadWeights(
        np.ones((features, units), np.float32),
        np.zeros(units, np.float32),
        np.ones((units, 3), np.float32),
        np.zeros(3, np.float32),
    )
    engine = load_engine(attach_head(small.backbone().SerializeToString(), wide), "openvino")
    lines = Path("/proc/self/smaps").read_text().splitlines()
    sizes = {}
    for at, line in enumerate(lines):
        if "/rayml-openvino-" in line:
            size, resident = (next(x for x in lines[at:] if x.startswith(f"{key}:")) for key in ("Size", "Rss"))
            sizes[int(size.split()[1])] = int(resident.split()[1])
    weights_kb = sum(array.nbytes for array in wide.arrays().values()) // 1024
    assert max(sizes) >= weights_kb
    assert sizes[max(sizes)] < weights_kb / 4  # One touched byte may bring a page of 2 MB.
    assert engine(small.pictures(1)).shape == (1, 3)


@linux
def test_openvino_says_that_it_found_no_room_for_its_file(model: bytes, caplog: pytest.LogCaptureFixture) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        engine = load_engine(model, "openvino")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "The weights stay in memory twice: no file can hold them (File too large)" in caplog.text
    images = small.pictures(2)
    np.testing.assert_allclose(engine(images), small.head().logits(small.features_of(images)), rtol=1e-4, atol=1e-4)


@linux
def test_openvino_needs_no_temporary_folder(
    model: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a container whose whole file system is read-only."""

    def none() -> NoReturn:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in []")

    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", none)
    engine = load_engine(model, "openvino")
    assert "The weights stay in memory twice: no file can hold them" in caplog.text
    images = small.pictures(2)
    np.testing.assert_allclose(engine(images), small.head().logits(small.features_of(images)), rtol=1e-4, atol=1e-4)


def test_onnx_runtime_reports_nothing_and_writes_nothing_to_the_home_folder(model: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model)
    program = (
        "import sys; from pathlib import Path; from rayml.engines import load_engine\n"
        "load_engine(Path(sys.argv[1]).read_bytes(), 'onnxruntime')"
    )
    home = tmp_path / "home"
    home.mkdir()
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    surroundings |= {"HOME": str(home), "TMPDIR": str(home)}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "model.onnx")], env=surroundings, check=True)
    assert not list(home.rglob("*"))


def test_openvinos_reporting_converter_is_never_imported() -> None:
    check = (
        "import sys; from rayml.engines.openvino import OpenVINOEngine as E\n"
        "try: E(b'')\nexcept Exception as error: print(type(error).__name__)\n"
        "print([m for m in sys.modules if m.startswith(('openvino.tools', 'openvino_telemetry')) and sys.modules[m]])"
    )
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["BundleError", "[]"]
