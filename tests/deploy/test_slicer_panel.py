"""The Slicer panel's lines between Qt, MRML and the workflow, against a running server."""

import sys
from unittest.mock import MagicMock

import numpy as np
import pytest
from MedSAM2FTLib.client import ServerError
from phantom import bright_ball


@pytest.fixture
def panel(monkeypatch, server_url):
    """The widget over stand-ins for Qt and MRML: no test of Slicer, but of the lines between it and the workflow."""

    class Base:
        def __init__(self, *arguments):
            self.layout = MagicMock()

        def setup(self):
            pass

    scripted = MagicMock()
    for kind in ("", "Logic", "Test", "Widget"):
        setattr(scripted, f"ScriptedLoadableModule{kind}", type(f"Base{kind}", (Base,), {}))
    stand_ins = {"slicer": MagicMock(), "qt": MagicMock(), "ctk": MagicMock(), "vtk": pytest.importorskip("vtk")}
    for name, stand_in in {**stand_ins, "slicer.ScriptedLoadableModule": scripted}.items():
        monkeypatch.setitem(sys.modules, name, stand_in)
    for name in ("MedSAM2FT", "MedSAM2FTLib.scene"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import MedSAM2FT

    slicer, array, segments = stand_ins["slicer"], bright_ball(), {}
    matrix = np.diag([-1.0, -1.0, 2.0, 1.0])

    def fill(vtk_matrix):
        for row in range(4):
            vtk_matrix.SetElement(row, row, matrix[row, row])

    volume = MagicMock(GetIJKToRASMatrix=fill, GetParentTransformNode=lambda: None, GetID=lambda: "v1")
    slicer.util.arrayFromVolume = lambda node: array
    slicer.util.arrayFromSegmentBinaryLabelmap = lambda node, segment, reference: segments[segment]
    slicer.util.updateSegmentBinaryLabelmapFromArray = lambda mask, node, segment, reference: segments.update(
        {segment: mask}
    )
    slicer.util.createProgressDialog.return_value.wasCanceled = False
    slicer.util.errorDisplay.side_effect = AssertionError
    slice_to_ras = np.eye(4)
    slice_to_ras[:3, 3] = [-24, -20, 12]
    view = slicer.app.layoutManager.return_value.sliceWidget.return_value.mrmlSliceNode.return_value
    view.GetSliceToRAS.return_value = MagicMock(GetElement=lambda row, column: slice_to_ras[row, column])
    segmentation = MagicMock()
    segmentation.GetSegmentation().GetSegmentIdBySegmentName = lambda name: name if name in segments else ""
    segmentation.GetSegmentation().AddEmptySegment = lambda segment, name: name
    roi_to_world = np.eye(4)
    roi_to_world[:3, 3] = [-24, -20, 12]
    roi = MagicMock(
        GetObjectToWorldMatrix=lambda: MagicMock(GetElement=lambda row, column: roi_to_world[row, column]),
        GetSize=lambda: (20, 20, 20),
        GetNumberOfDefinedControlPoints=lambda: 1,
    )
    slicer.mrmlScene.AddNewNodeByClass.return_value = roi
    widget = MedSAM2FT.MedSAM2FTWidget()
    widget.setup()
    widget.url, widget.api_key = MagicMock(text=server_url), MagicMock(text="")
    widget.model, widget.view = MagicMock(currentText=""), MagicMock(currentText="Red")
    widget.preset = MagicMock(currentText="CT brain (40 / 80)")
    widget.volume = MagicMock(currentNode=lambda: volume)
    widget.segmentation = MagicMock(currentNode=lambda: segmentation)
    widget.name = MagicMock(text="liver")
    widget.object = MagicMock(findText=lambda name: -1)
    yield widget, segments, array
    widget.cleanup()


def test_the_panel_makes_a_named_segment(panel):
    widget, segments, array = panel
    widget.on_test()
    widget.on_add_box()
    widget.on_segment()
    np.testing.assert_array_equal(segments["liver"][6] > 0, array[6] > 100)
    assert not segments["liver"][5].any()
    widget.on_keep()
    widget.only_depth = MagicMock(checked=False)
    widget.on_propagate()
    np.testing.assert_array_equal(segments["liver"] > 0, array > 100)


def roi_at(slice_index, *, depth_mm=2.0):
    """A box of 20 x 20 mm round the ball's place, on the slices round one."""
    to_world = np.eye(4)
    to_world[:3, 3] = [-24, -20, 2.0 * slice_index]
    return MagicMock(
        GetObjectToWorldMatrix=lambda: MagicMock(GetElement=lambda row, column: to_world[row, column]),
        GetSize=lambda: (20, 20, depth_mm),
        GetNumberOfDefinedControlPoints=lambda: 1,
    )


def test_carrying_one_object_leaves_the_others(panel):
    widget, segments, array = panel
    elsewhere = np.zeros(array.shape, np.uint8)
    elsewhere[2, 5:9, 5:9] = 1
    widget.on_add_box()
    widget.objects |= {"vessel": {"roi": roi_at(2), True: None, False: None}}
    widget.objects |= {"drawn on another volume": {"roi": roi_at(400), True: None, False: None}}
    segments["vessel"] = elsewhere.copy()
    widget.on_segment()
    widget.only_depth = MagicMock(checked=False)
    widget.on_propagate()
    np.testing.assert_array_equal(segments["liver"] > 0, array > 100)
    np.testing.assert_array_equal(segments["vessel"], elsewhere)
    widget.object = MagicMock(currentText="vessel")
    widget.on_remove()
    assert list(widget.objects) == ["liver", "drawn on another volume"]
    widget.on_scene_closed()
    assert not widget.objects


def test_clicks_beyond_the_box_correct_what_is_there(panel):
    widget, _, array = panel
    volume, segment = widget.volume.currentNode(), (array > 100).astype(np.uint8)
    click = MagicMock(
        GetNumberOfDefinedControlPoints=lambda: 1, GetNthControlPointPositionWorld=lambda i: (-24.0, -20.0, 12.0)
    )
    how = {"number": 1, "axis": 0, "index": 6}
    prompt, depth = widget.logic.prompt(volume, roi_at(2), [(click, False)], segment=lambda: segment, **how)
    assert (prompt.box, depth, prompt.clicks) == (None, (2, 2), [(24.0, 20.0, False)])
    np.testing.assert_array_equal(prompt.mask, segment[6] > 0)
    prompt, _ = widget.logic.prompt(volume, roi_at(6), [(click, False)], segment=lambda: segment, **how)
    assert prompt.box is not None
    assert prompt.mask is None, "a box starts afresh, as in the app"
    with pytest.raises(ServerError, match="Only negative clicks"):
        widget.logic.prompt(volume, roi_at(2), [(click, False)], segment=lambda: segment * 0, **how)
