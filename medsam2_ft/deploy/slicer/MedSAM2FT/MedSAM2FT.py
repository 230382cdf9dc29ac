"""The MedSAM2FT module of 3D Slicer: boxes and clicks on any slice view become named segments.

The widget holds the Qt, `MedSAM2FTLib.scene` the MRML; what they do with a volume and a server is in the rest of
MedSAM2FTLib, which needs neither.
"""

from functools import partial

import ctk
import numpy as np
import qt
import slicer
from MedSAM2FTLib.client import Client, ServerError
from MedSAM2FTLib.presets import AS_DISPLAYED, PRESETS
from MedSAM2FTLib.prompts import ObjectPrompt
from MedSAM2FTLib.scene import MedSAM2FTLogic
from MedSAM2FTLib.workflow import Cancelled
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

SETTINGS = "MedSAM2FT"
VIEWS = ("Red", "Yellow", "Green")


class MedSAM2FT(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "MedSAM2FT"
        parent.categories = ["Segmentation"]
        parent.dependencies = ["Segmentations", "Markups"]
        parent.contributors = ["The medsam2_ft contributors"]
        parent.helpText = (
            "Draw a box around a structure on any slice view, segment that slice, correct it, and carry it through the "
            "volume. The model runs in a medsam2_ft server, on this computer or another. The volume is never changed."
        )
        parent.acknowledgementText = (
            "After Ma et al., Segment Anything in Medical Images and Videos: Benchmark and Deployment, 2024."
        )


class MedSAM2FTWidget(ScriptedLoadableModuleWidget):
    """The panel."""

    def setup(self):
        """Build the panel; called once by Slicer."""
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = MedSAM2FTLogic()
        self.objects = {}
        self.kept = set()
        self._set_up_server()
        self._set_up_input()
        self._set_up_prompts()
        self._set_up_actions()
        self.layout.addStretch(1)
        self._observer = slicer.mrmlScene.AddObserver(slicer.mrmlScene.EndCloseEvent, self.on_scene_closed)

    def cleanup(self):
        """Leave nothing behind, on this computer or the server."""
        slicer.mrmlScene.RemoveObserver(self._observer)
        self.logic.disconnect()
        self.logic.server.stop()

    def _section(self, title):
        section = ctk.ctkCollapsibleButton()
        section.text = title
        self.layout.addWidget(section)
        return qt.QFormLayout(section)

    def _button(self, form, text, tip, action):
        button = qt.QPushButton(text)
        button.toolTip = tip
        button.connect("clicked()", lambda: self._guarded(action))
        form.addRow(button)
        return button

    def _setting(self, form, name, label, default, tip):
        edit = qt.QLineEdit(slicer.app.userSettings().value(f"{SETTINGS}/{name}", default))
        edit.toolTip = tip
        edit.connect("editingFinished()", lambda: slicer.app.userSettings().setValue(f"{SETTINGS}/{name}", edit.text))
        form.addRow(label, edit)
        return edit

    def _node_selector(self, form, label, node_class, *, can_add):
        selector = slicer.qMRMLNodeComboBox()
        selector.nodeTypes = [node_class]
        selector.addEnabled = selector.renameEnabled = can_add
        selector.noneEnabled = can_add
        selector.setMRMLScene(slicer.mrmlScene)
        form.addRow(label, selector)
        return selector

    def _set_up_server(self):
        form = self._section("Server")
        self.url = self._setting(form, "url", "Address", "http://127.0.0.1:8642", "Where medsam2_ft serve runs")
        self.api_key = self._setting(form, "apiKey", "API key", "", "Needed for a server on another computer")
        self.api_key.echoMode = qt.QLineEdit.Password
        self._button(form, "Test connection", "Ask the server for its version and models", self.on_test)
        self.python = self._setting(form, "python", "Python", "python3", "The Python that medsam2_ft is installed in")
        self.checkpoint = self._setting(
            form, "checkpoint", "Checkpoint", "", "File or name to serve; empty for the default"
        )
        self._button(form, "Start a server on this computer", "Runs medsam2_ft serve until Slicer ends", self.on_start)
        self.model = qt.QComboBox()
        self.model.toolTip = "Base and fine-tuned checkpoints that the server offers"
        form.addRow("Model", self.model)

    def _set_up_input(self):
        form = self._section("Volume")
        self.volume = self._node_selector(form, "Volume", "vtkMRMLScalarVolumeNode", can_add=False)
        self.segmentation = self._node_selector(form, "Segmentation", "vtkMRMLSegmentationNode", can_add=True)
        self.preset = qt.QComboBox()
        self.preset.addItems([*PRESETS, AS_DISPLAYED])
        form.addRow("Intensities", self.preset)
        self.view = qt.QComboBox()
        self.view.addItems(list(VIEWS))
        self.view.toolTip = "The slice view whose slice is segmented and whose direction is carried along"
        form.addRow("Slice view", self.view)

    def _set_up_prompts(self):
        form = self._section("Objects")
        self.name = qt.QLineEdit("object 1")
        form.addRow("Name", self.name)
        self.object = qt.QComboBox()
        self._button(form, "Add box", "Draw a box in any slice view for a new object of this name", self.on_add_box)
        form.addRow("Object", self.object)
        self._button(form, "Add positive clicks", "Click inside the chosen object", lambda: self.on_add_clicks(True))
        self._button(form, "Add negative clicks", "Click outside the chosen object", lambda: self.on_add_clicks(False))
        self._button(form, "Remove object", "Its box and clicks; its segment stays", self.on_remove)

    def _set_up_actions(self):
        form = self._section("Segmentation")
        self._button(form, "Segment slice", "All objects on the slice of the chosen view", self.on_segment)
        self._button(form, "Refine in Segment Editor", "Paint and erase; then keep the slice", self.on_refine)
        self._button(form, "Keep this slice", "Use what is segmented on it when carrying on", self.on_keep)
        self.only_depth = qt.QCheckBox("Only as deep as the boxes")
        form.addRow(self.only_depth)
        self._button(
            form, "Propagate both ways", "Carry the slice in view and all kept slices along", self.on_propagate
        )

    def _guarded(self, action):
        """Every failure is a sentence in a dialog."""
        try:
            action()
        except (ServerError, ValueError) as error:
            slicer.util.errorDisplay(str(error), windowTitle="MedSAM2FT")
        except Cancelled:
            slicer.util.showStatusMessage("Cancelled; the segmentation is as it was.", 5000)

    def on_test(self):
        """Test connection."""
        client = Client(self.url.text, api_key=self.api_key.text)
        sentence = client.check()
        self.model.clear()
        self.model.addItems(client.models())
        slicer.util.infoDisplay(sentence, windowTitle="MedSAM2FT")

    def on_start(self):
        """Start a server on this computer."""
        checkpoints = [self.checkpoint.text] if self.checkpoint.text else []
        with slicer.util.WaitCursor():
            self.url.text = self.logic.server.start(
                self.python.text,
                port=int(self.url.text.rsplit(":", 1)[-1].strip("/")),
                checkpoints=checkpoints,
                environment=slicer.util.startupEnvironment(),
                on_wait=slicer.app.processEvents,
            )
        self.on_test()

    def on_add_box(self):
        """Add box: a new object and its ROI, drawn in a slice view."""
        name = self.name.text.strip() or f"object {len(self.objects) + 1}"
        roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", name)
        roi.CreateDefaultDisplayNodes()
        roi.GetDisplayNode().SetFillVisibility(False)
        self.objects[name] = {"roi": roi, True: None, False: None}
        if self.object.findText(name) < 0:
            self.object.addItem(name)
        self.object.setCurrentText(name)
        self.name.text = f"object {len(self.objects) + 1}"
        self._place(roi)
        self._read_ahead()

    def _read_ahead(self):
        """Let a server that has answered before encode the slice in view while the user draws on it."""
        if self.model.count == 0 or self.volume.currentNode() is None:
            return
        try:
            _, _, axis, index, window = self._ready()
            self.logic.workflow.look_at(index, axis=axis, window=window, wait=False)
        except (ServerError, ValueError) as error:  # no reason to stop drawing
            slicer.util.showStatusMessage(str(error), 5000)

    def on_add_clicks(self, positive):
        """Add positive or negative clicks to the chosen object."""
        name = self.object.currentText
        if not name:
            raise ServerError("Add a box first; clicks refine it.")
        if self.objects[name][positive] is None:
            node = slicer.mrmlScene.AddNewNodeByClass(
                "vtkMRMLMarkupsFiducialNode", f"{name} {'+' if positive else '-'}"
            )
            node.CreateDefaultDisplayNodes()
            node.GetDisplayNode().SetSelectedColor(*((0, 1, 0) if positive else (1, 0, 0)))
            self.objects[name][positive] = node
        self._place(self.objects[name][positive])

    def on_remove(self):
        """Remove object: its box and clicks go, its segment stays."""
        for node in self.objects.pop(self.object.currentText, {}).values():
            if node is not None:
                slicer.mrmlScene.RemoveNode(node)
        self.object.removeItem(self.object.currentIndex)

    def on_scene_closed(self, *_):
        """Boxes, clicks and kept slices went with the scene."""
        self.objects.clear()
        self.kept.clear()
        self.object.clear()

    def _place(self, node):
        selection = slicer.app.applicationLogic().GetSelectionNode()
        selection.SetReferenceActivePlaceNodeClassName(node.GetClassName())
        selection.SetActivePlaceNodeID(node.GetID())
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        interaction.SetCurrentInteractionMode(interaction.Place)

    def _ready(self):
        """(volume, segmentation, axis, slice index, window), with the workflow connected to the volume."""
        volume = self.volume.currentNode()
        if volume is None:
            raise ServerError("Choose a volume first.")
        segmentation = self.segmentation.currentNode()
        if segmentation is None:
            segmentation = slicer.mrmlScene.AddNewNodeByClass(
                "vtkMRMLSegmentationNode", f"{volume.GetName()} segmentation"
            )
            segmentation.CreateDefaultDisplayNodes()
            self.segmentation.setCurrentNode(segmentation)
        workflow = self.logic.connect(self.url.text, self.api_key.text, self.model.currentText or None)
        with slicer.util.WaitCursor():
            workflow.choose_volume(slicer.util.arrayFromVolume(volume))
        axis, index = self.logic.plane(volume, self.view.currentText)
        return volume, segmentation, axis, index, self.logic.window(volume, self.preset.currentText)

    def _prompts(self, volume, segmentation, axis, index):
        """(prompts of all objects on the slice, first and last slice that any of their boxes touches)."""
        prompts, firsts, lasts = [], [], []
        for number, (name, nodes) in enumerate(self.objects.items(), start=1):
            clicks = ((nodes[True], True), (nodes[False], False))
            segment = partial(self.logic.segment_array, segmentation, name, volume)
            try:
                prompt, (first, last) = self.logic.prompt(
                    volume, nodes["roi"], clicks, number=number, axis=axis, index=index, segment=segment
                )
            except ValueError:  # the box was drawn on another volume
                continue
            firsts.append(first)
            lasts.append(last)
            if prompt.box is not None or prompt.clicks:
                prompts.append(prompt)
        return prompts, (min(firsts, default=0), max(lasts, default=0))

    def on_segment(self):
        """Segment slice: every object whose box or clicks lie on the slice in view."""
        volume, segmentation, axis, index, window = self._ready()
        prompts, _ = self._prompts(volume, segmentation, axis, index)
        if not prompts:
            raise ServerError("No box and no click lies on the slice in view; draw one, or scroll to it.")
        masks = self.logic.workflow.segment_slice(prompts, axis=axis, window=window)
        names = list(self.objects)
        for number, mask in masks.items():
            array = self.logic.segment_array(segmentation, names[number - 1], volume)
            np.moveaxis(array, axis, 0)[index] = mask
            self.logic.write_segment(segmentation, names[number - 1], array, volume)

    def on_refine(self):
        """Refine in Segment Editor."""
        slicer.util.selectModule("SegmentEditor")
        editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
        editor.setSegmentationNode(self.segmentation.currentNode())
        editor.setSourceVolumeNode(self.volume.currentNode())

    def on_keep(self):
        """Keep this slice: it conditions the next propagation beside the slice in view."""
        volume, _, axis, index, _ = self._ready()
        self.kept.add((volume.GetID(), axis, index))
        slicer.util.showStatusMessage(f"Slice {index} is kept for the next propagation.", 5000)

    def on_propagate(self):
        """Propagate both ways from what is segmented on the slice in view and on the kept slices."""
        volume, segmentation, axis, index, window = self._ready()
        kept = {i for node_id, kept_axis, i in self.kept if (node_id, kept_axis) == (volume.GetID(), axis)}
        from_boxes, (first, last) = self._prompts(volume, segmentation, axis, index)
        if not self.only_depth.checked:
            first, last = 0, slicer.util.arrayFromVolume(volume).shape[axis] - 1
        prompts = []
        for number, name in enumerate(self.objects, start=1):
            slices = np.moveaxis(self.logic.segment_array(segmentation, name, volume), axis, 0)
            for i in sorted(kept | {index}):
                if slices[i].any():
                    prompts.append(ObjectPrompt(number, i, mask=slices[i] > 0))
        seen = {(prompt.object, prompt.slice) for prompt in prompts}
        prompts += [prompt for prompt in from_boxes if (prompt.object, prompt.slice) not in seen]
        dialog = slicer.util.createProgressDialog(labelText="Propagating", maximum=100, windowTitle="MedSAM2FT")

        def on_progress(progress):
            dialog.value = int(100 * progress)
            slicer.app.processEvents()
            return not dialog.wasCanceled

        try:
            labels = self.logic.workflow.propagate(
                prompts, axis=axis, window=window, first=first, last=last, on_progress=on_progress
            )
        finally:
            dialog.close()
        carried = {prompt.object for prompt in prompts}  # the others keep what they have
        for number, name in enumerate(self.objects, start=1):
            if number in carried:
                self.logic.write_segment(segmentation, name, labels == number, volume)


class MedSAM2FTTest(ScriptedLoadableModuleTest):
    """Slicer's own self-test: a ball in an oblique volume, through MRML and back; needs a running server."""

    def runTest(self):
        """Run by Slicer."""
        self.setUp()
        self.test_ball()

    def setUp(self):
        """An empty scene."""
        slicer.mrmlScene.Clear()

    def test_ball(self):
        """The segment of a bright ball has the ball's centre."""
        array = np.zeros((24, 64, 64), np.int16)
        grid = np.indices(array.shape)
        array[((grid - np.array([12, 30, 34])[:, None, None, None]) ** 2).sum(axis=0) < 64] = 300
        volume = slicer.util.addVolumeFromArray(array, ijkToRAS=np.diag([-0.8, -0.8, 3.0, 1.0]))
        logic = MedSAM2FTLogic()
        workflow = logic.connect("http://127.0.0.1:8642", "")
        workflow.choose_volume(slicer.util.arrayFromVolume(volume))
        masks = workflow.segment_slice([ObjectPrompt(1, 12, box=[24, 20, 45, 41])], axis=0)
        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        full = np.zeros(array.shape, np.uint8)
        full[12] = masks[1]
        logic.write_segment(segmentation, "ball", full, volume)
        back = logic.segment_array(segmentation, "ball", volume)
        self.assertTrue(np.array_equal(back, full))
        self.assertTrue(np.allclose(np.argwhere(back).mean(axis=0), [12, 30, 34], atol=2))
        self.delayDisplay("Test passed")
