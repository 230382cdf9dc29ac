"""Between Slicer's scene and the workflow: arrays, matrices, boxes, segments; it alone here needs Slicer."""

import numpy as np
import slicer
import vtk
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

from . import geometry
from .client import Client, ServerError
from .local_server import LocalServer
from .presets import AS_DISPLAYED, PRESETS
from .prompts import ObjectPrompt
from .workflow import Workflow


class MedSAM2FTLogic(ScriptedLoadableModuleLogic):
    """Between the scene and the workflow: arrays, matrices, boxes and segments."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        self.server = LocalServer()
        self.workflow = None

    def connect(self, url, api_key, model=None):
        """Talk to this server with this model from now on."""
        client, current = Client(url, api_key=api_key), self.workflow
        is_same = current is not None and (current.client.url, current.client.api_key) == (client.url, api_key)
        if not is_same or current.model != model:
            self.disconnect()
            self.workflow = Workflow(client, model=model)
        return self.workflow

    def disconnect(self):
        """Delete what the server holds of ours."""
        if self.workflow is not None:
            self.workflow.close()
            self.workflow = None

    def ijk_to_ras(self, volume):
        """Voxel (i, j, k) to world mm, the volume's linear parent transforms included."""
        ijk_to_local, local_to_world = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
        volume.GetIJKToRASMatrix(ijk_to_local)
        parent = volume.GetParentTransformNode()
        if parent is not None and not parent.GetMatrixTransformToWorld(local_to_world):
            raise ServerError("The volume is under a non-linear transform; harden it first.")
        return geometry.matrix_to_array(local_to_world) @ geometry.matrix_to_array(ijk_to_local)

    def plane(self, volume, view):
        """(array axis, slice index) that a slice view shows."""
        node = slicer.app.layoutManager().sliceWidget(view).mrmlSliceNode()
        slice_to_ras = geometry.matrix_to_array(node.GetSliceToRAS())
        matrix = self.ijk_to_ras(volume)
        axis = geometry.slice_axis(matrix, slice_to_ras[:3, 2])
        shape = slicer.util.arrayFromVolume(volume).shape
        return axis, geometry.slice_index(matrix, shape, axis, slice_to_ras[:3, 3])

    def prompt(self, volume, roi, clicks, *, number, axis, index, segment):
        """One object's prompt on one slice, and the first and last slice that its box touches.

        Args:
            volume: the volume node.
            roi: markups ROI, or None.
            clicks: (fiducial node or None, whether its clicks are positive).
            number: of the object.
            axis, index: the slice.
            segment: gives what the object has so far, [k, j, i]; clicks beyond the box's slices correct that, not the box.
        """
        matrix, shape = self.ijk_to_ras(volume), slicer.util.arrayFromVolume(volume).shape
        prompt = ObjectPrompt(number, index)
        depth = (0, shape[axis] - 1)
        if roi is not None and roi.GetNumberOfDefinedControlPoints():
            object_to_world = geometry.matrix_to_array(roi.GetObjectToWorldMatrix())
            corners = geometry.roi_corners(object_to_world, roi.GetSize())
            box, depth = geometry.box_on_slice(matrix, shape, axis, corners)
            prompt.box = box if depth[0] <= index <= depth[1] else None
        for node, positive in clicks:
            for position in range(node.GetNumberOfDefinedControlPoints() if node is not None else 0):
                point = np.array(node.GetNthControlPointPositionWorld(position))
                on_slice = geometry.to_ijk(matrix, point)[0, geometry.IJK_OF_AXIS[axis]]
                if abs(on_slice - index) <= 0.5:
                    prompt.clicks.append((*geometry.click_on_slice(matrix, axis, point), positive))
        if prompt.clicks and prompt.box is None:
            mask = np.moveaxis(segment(), axis, 0)[index] > 0
            prompt.mask = mask if mask.any() else None
            if prompt.mask is None and not any(positive for _, _, positive in prompt.clicks):
                raise ServerError(
                    "Only negative clicks lie on this slice, where the object is not yet; click inside it first."
                )
        return prompt, depth

    def window(self, volume, preset):
        """(level, width) of a preset, of the display, or None for the checkpoint's own recipe."""
        if preset == AS_DISPLAYED:
            display = volume.GetScalarVolumeDisplayNode()
            return display.GetLevel(), max(display.GetWindow(), 1e-3)
        return PRESETS[preset]

    def segment_array(self, segmentation, name, volume):
        """A segment on the grid of the volume, [k, j, i]; all zero where there is no such segment yet."""
        segment_id = segmentation.GetSegmentation().GetSegmentIdBySegmentName(name)
        if not segment_id:
            return np.zeros(slicer.util.arrayFromVolume(volume).shape, np.uint8)
        return np.array(slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment_id, volume))

    def write_segment(self, segmentation, name, mask, volume):
        """Make or replace a segment; it lies under the same transform as the volume, so it lies on the volume."""
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segmentation.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        segment_id = segmentation.GetSegmentation().GetSegmentIdBySegmentName(name)
        if not segment_id:
            segment_id = segmentation.GetSegmentation().AddEmptySegment("", name)
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), segmentation, segment_id, volume)
