"""The Slicer client against a running server, with real vtk images and matrices, and masks read back by nibabel."""

import ast
import socket
import sys
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from MedSAM2FTLib import geometry
from MedSAM2FTLib.client import Client, ServerError
from MedSAM2FTLib.local_server import LocalServer
from MedSAM2FTLib.prompts import ObjectPrompt, prompts_from_labels
from MedSAM2FTLib.workflow import Cancelled, Workflow, sendable
from phantom import PhantomPredictor, bright_ball, phantom_engine, running_server, sweep

from medsam2_ft.deploy.limits import Limits

EXTENSION = Path(__file__).parents[2] / "medsam2_ft/deploy/slicer/MedSAM2FT"
CENTER_RAS = np.array([12.0, -31.0, 47.0])
RADII_MM = np.array([14.0, 10.0, 18.0])
SHAPE_KJI = (20, 44, 52)


def rotation(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    a, b = [i for i in range(3) if i != axis]
    matrix = np.eye(3)
    matrix[[a, a, b, b], [a, b, a, b]] = [c, -s, s, c]
    return matrix


GEOMETRIES = {
    "axial": np.diag([1.0, 1.0, 1.0]),
    "lps": np.diag([-1.0, -1.0, 1.0]),
    "flipped": np.diag([1.0, -1.0, -1.0]),
    "oblique": rotation(20, 0) @ rotation(-15, 2),
    "sagittal": np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]),
    "oblique left-handed": rotation(25, 1) @ np.diag([1.0, 1.0, -1.0]),
}


def ijk_to_ras(direction: np.ndarray, spacing=(0.9, 1.3, 3.0)) -> np.ndarray:
    """The grid's middle lies near the phantom's centre, off by a part of a voxel."""
    matrix = np.eye(4)
    matrix[:3, :3] = direction * spacing
    middle = (np.array(SHAPE_KJI[::-1]) - 1) / 2
    matrix[:3, 3] = CENTER_RAS + np.array([0.3, -0.4, 0.7]) - matrix[:3, :3] @ middle
    return matrix


def is_inside(points_ras: np.ndarray) -> np.ndarray:
    return (((points_ras - CENTER_RAS) / RADII_MM) ** 2).sum(axis=-1) < 1


def vtk_volume(matrix: np.ndarray):
    """(vtkImageData, vtkMatrix4x4) as Slicer holds a volume: voxels without geometry, geometry in the matrix."""
    vtk = pytest.importorskip("vtk")
    from vtk.util.numpy_support import numpy_to_vtk

    k, j, i = np.indices(SHAPE_KJI)
    ras = np.stack([i, j, k, np.ones_like(i)], axis=-1) @ matrix.T
    array = np.where(is_inside(ras[..., :3]), 180, 30).astype(np.uint8)
    image = vtk.vtkImageData()
    image.SetDimensions(*SHAPE_KJI[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(array.ravel(), deep=True))
    vtk_matrix = vtk.vtkMatrix4x4()
    for row in range(4):
        for column in range(4):
            vtk_matrix.SetElement(row, column, matrix[row, column])
    return image, vtk_matrix


def array_of(image) -> np.ndarray:
    """As `slicer.util.arrayFromVolume` does it."""
    from vtk.util.numpy_support import vtk_to_numpy

    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(SHAPE_KJI)


def write_nifti(path: Path, labels: np.ndarray, vtk_matrix) -> None:
    """As Slicer saves a segmentation's label map: vtk's own writer, geometry from IJKToRAS."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    image = vtk.vtkImageData()
    image.SetDimensions(*SHAPE_KJI[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(labels.ravel(), deep=True))
    writer = vtk.vtkNIFTIImageWriter()
    writer.SetFileName(str(path))
    writer.SetSFormMatrix(vtk_matrix)
    writer.SetInputData(image)
    writer.Write()


@pytest.mark.parametrize("view_normal", [(0, 0, 1), (0, 1, 0), (1, 0, 0)], ids=["red", "green", "yellow"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_mask_lies_on_the_phantom(server_url, tmp_path, name, view_normal):
    image, vtk_matrix = vtk_volume(ijk_to_ras(GEOMETRIES[name]))
    matrix = geometry.matrix_to_array(vtk_matrix)
    array = array_of(image)
    before = array.copy()
    axis = geometry.slice_axis(matrix, view_normal)
    index = geometry.slice_index(matrix, SHAPE_KJI, axis, CENTER_RAS)
    roi_to_world = np.eye(4)
    roi_to_world[:3, :3], roi_to_world[:3, 3] = rotation(10, 2), CENTER_RAS
    box, (first, last) = geometry.box_on_slice(
        matrix, SHAPE_KJI, axis, geometry.roi_corners(roi_to_world, 2 * RADII_MM + 12)
    )
    workflow = Workflow(Client(server_url))
    workflow.choose_volume(array)
    prompt = ObjectPrompt(2, index, box=box)
    masks = workflow.segment_slice([prompt], axis=axis)
    np.testing.assert_array_equal(masks[2], np.take(array, index, axis) > 100)

    corrected = ObjectPrompt(2, index, mask=masks[2])
    labels = workflow.propagate([corrected], axis=axis, first=first, last=last)
    workflow.close()
    np.testing.assert_array_equal(array, before)
    write_nifti(tmp_path / "segments.nii", labels, vtk_matrix)

    read = nib.load(tmp_path / "segments.nii")
    found = np.argwhere(np.asarray(read.dataobj) == 2)
    np.testing.assert_allclose(read.affine, matrix, atol=1e-4)
    in_space = nib.affines.apply_affine(read.affine, found)
    assert is_inside(in_space).all() and len(found) == (before > 100).sum()
    # The far ends along each world axis agree with the ellipsoid's, to a voxel.
    voxel_mm = np.abs(matrix[:3, :3]).sum(axis=1)
    np.testing.assert_array_less(np.abs(in_space.max(axis=0) - CENTER_RAS - RADII_MM), voxel_mm)
    np.testing.assert_array_less(np.abs(in_space.min(axis=0) - CENTER_RAS + RADII_MM), voxel_mm)


def test_boxes_and_clicks_follow_the_pixel_conventions():
    matrix = np.diag([-0.5, -0.5, 2.0, 1.0])
    corners = np.array([[-1.75, -3.25, 3.0], [-4.25, -5.75, 9.0]])
    box, depth = geometry.box_on_slice(matrix, (10, 20, 30), 0, corners)
    assert box == [4.0, 7.0, 9.0, 12.0] and depth == (2, 4)
    assert geometry.click_on_slice(matrix, 0, [-2.0, -3.0, 4.0]) == (4.0, 6.0)
    with pytest.raises(ValueError, match="outside"):
        geometry.box_on_slice(matrix, (10, 20, 30), 0, corners + 100)
    with pytest.raises(ValueError, match="outside"):
        geometry.slice_index(matrix, (10, 20, 30), 0, np.array([0, 0, 50.0]))


def test_correct_a_slice_and_carry_it_on(server_url):
    workflow = Workflow(Client(server_url))
    workflow.choose_volume(bright_ball().astype(np.uint8))
    labels = np.zeros((12, 40, 48), np.uint8)
    labels[6][bright_ball()[6] > 100] = 1
    seen = []
    result = workflow.propagate(
        prompts_from_labels(labels, 0, 6), axis=0, on_progress=lambda progress: not seen.append(progress)
    )
    np.testing.assert_array_equal(result, bright_ball() > 100)


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.float16, bool, np.int16, np.float64])
def test_any_scalar_volume_can_be_sent(server_url, kind):
    workflow = Workflow(Client(server_url))
    workflow.choose_volume(bright_ball().astype(kind))
    assert workflow.segment_slice([ObjectPrompt(1, 6, box=[10.0, 10, 40, 40])], axis=0)


def test_nan_outside_the_field_of_view_is_filled():
    array = bright_ball().astype(np.float32)
    array[0, 0, 0], array[1, 1, 1] = np.nan, np.inf
    before = array.copy()
    sent = sendable(array)
    assert np.isfinite(sent).all() and sent[0, 0, 0] == 20
    np.testing.assert_array_equal(array, before)


def slow_sweep(*arguments, **options):
    for step in sweep(*arguments, **options):
        time.sleep(0.1)
        yield step


def test_cancel_progress_and_an_expired_session():
    from medsam2_ft.deploy.server import create_app

    app = create_app(phantom_engine(sweep=slow_sweep), limits=Limits(session_idle_s=1e9))
    with running_server(app) as url:
        workflow = Workflow(Client(url))
        workflow.choose_volume(bright_ball())
        prompt = ObjectPrompt(1, 6, box=[10.0, 10, 40, 40])
        workflow.look_at(6, axis=0)
        with pytest.raises(Cancelled):
            workflow.propagate([prompt], axis=0, on_progress=lambda progress: progress < 0.2)
        sessions = app.state.desk.sessions
        sessions.close(sessions.get(workflow._session))
        assert workflow.segment_slice([prompt], axis=0, window=(100.0, 300.0))[1].any()


def test_every_failure_is_a_sentence(server_url):
    workflow = Workflow(Client(server_url))
    with pytest.raises(ServerError, match="Choose a volume"):
        workflow.segment_slice([], axis=0)
    workflow.choose_volume(bright_ball())
    with pytest.raises(ServerError, match="outside the slice"):
        workflow.segment_slice([ObjectPrompt(1, 6, box=[900.0, 900, 990, 990])], axis=0)
    with pytest.raises(ServerError, match="slices 0 to 11"):
        workflow.propagate([ObjectPrompt(1, 60, box=[1.0, 1, 9, 9])], axis=0)
    workflow.model = "nothing"
    with pytest.raises(ServerError, match="no model 'nothing'"):
        workflow.segment_slice([ObjectPrompt(1, 6, box=[1.0, 1, 9, 9])], axis=0)
    with pytest.raises(ServerError, match="does not answer"):
        Client("http://127.0.0.1:9").check()
    with pytest.raises(ServerError, match="not a server address"):
        Client("localhost")


def test_a_wrong_key_is_told():
    from medsam2_ft.deploy.server import create_app

    with running_server(create_app(phantom_engine(), api_key="correct horse battery")) as url:
        with pytest.raises(ServerError, match="X-API-Key"):
            Client(url, api_key="wrong").check()
        assert "phantom" in Client(url, api_key="correct horse battery").check()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"junk\r\n\r\n", b""])
def test_a_server_that_is_not_ours_is_told(answer):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def respond():
            line, _ = listener.accept()
            with line:
                line.recv(4096)
                line.sendall(answer)

        threading.Thread(target=respond, daemon=True).start()
        with pytest.raises(ServerError, match=r"not a medsam2_ft server|does not answer"):
            Client(f"http://127.0.0.1:{listener.getsockname()[1]}").check()


def test_a_server_that_cannot_start_is_told(tmp_path):
    with pytest.raises(ServerError, match="cannot be started"):
        LocalServer().start(str(tmp_path / "no-python"), port=9)
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho no such checkpoint\nexit 2\n")
    fake.chmod(0o755)
    with pytest.raises(ServerError, match="no such checkpoint"):
        LocalServer().start(str(fake), port=9)


def test_the_embedding_is_shared_by_clicks():
    from medsam2_ft.deploy.server import create_app

    predictor = PhantomPredictor()
    with running_server(create_app(phantom_engine(predictor=predictor))) as url:
        workflow = Workflow(Client(url))
        workflow.choose_volume(bright_ball().astype(np.uint8))
        for _ in range(3):
            workflow.segment_slice([ObjectPrompt(1, 6, clicks=[(24.0, 20.0, True)])], axis=0)
        assert predictor.num_embedded == 1


def test_the_extension_imports_only_its_own_and_slicers():
    allowed = {"MedSAM2FTLib", "numpy", "slicer", "vtk", "qt", "ctk", *sys.stdlib_module_names}
    for file in EXTENSION.rglob("*.py"):
        # Slicer 5.0 to 5.6 run Python 3.9.
        for node in ast.walk(ast.parse(file.read_text(), feature_version=(3, 9))):
            names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert {name.split(".")[0] for name in names if name} <= allowed, file


def test_cmake_lists_every_script():
    listed = (EXTENSION / "CMakeLists.txt").read_text().replace("${MODULE_NAME}", "MedSAM2FT")
    for file in EXTENSION.rglob("*.py"):
        assert str(file.relative_to(EXTENSION)) in listed


def test_any_number_of_volumes_one_after_another(server_url):
    workflow = Workflow(Client(server_url))
    for number in range(Limits.volumes_per_session + 2):
        workflow.choose_volume(bright_ball() + number)
        assert workflow.segment_slice([ObjectPrompt(1, 6, box=[10.0, 10, 40, 40])], axis=0)[1].any()


def test_a_taken_port_is_told(server_url):
    with pytest.raises(ServerError, match="runs on port .* already"):
        LocalServer().start(sys.executable, port=int(server_url.rsplit(":", 1)[-1]))
