"""An explorer whose picture has a point to drag."""

from __future__ import annotations

import html
import json
import re
import uuid

import ipywidgets

from retina_lab.widgets.base import Explorer


class PointExplorer(Explorer):
    """An explorer whose first two sliders are a point in its picture, to be dragged there.

    In JupyterLab a handler on the picture types the point into a hidden text field, and the
    kernel reads it as from a keyboard. In a static page a script moves the page's own sliders, and
    after a click the arrow keys move the point. Where scripts may not run the sliders remain.

    Args:
        *args: see :class:`Explorer`. The first two controls are column and row in pixels, from 0;
            they are also the two parameters of the frames.
        panel: where the square picture lies in the figure: left, bottom, width and height as
            shares of the figure. A pixel is as wide as the panel over the number of columns.
        **kwargs: see :class:`Explorer`.
    """

    def __init__(self, *args, panel: tuple[float, float, float, float], **kwargs):
        self._panel = panel
        self._field = ipywidgets.Text(continuous_update=False, layout={"display": "none"})
        # Notebooks that are open side by side share one page.
        self._place = f"retina-point-{uuid.uuid4().hex}"
        self._field.add_class(self._place)
        super().__init__(*args, **kwargs)
        self._field.observe(self._move, names="value")
        self.view.children = (*self.view.children, self._field)

    def _draw(self) -> None:
        with self._picture.hold_sync():  # one message, the handler included
            super()._draw()
            handler = html.escape(self._fill(_LIVE, place=self._place), quote=True)
            self._picture.value = (
                f'<div onpointerdown="{handler}" ondragstart="return false" '
                'style="display:inline-block;cursor:crosshair;touch-action:none">'
                f"{self._picture.value}</div>"
            )

    def _move(self, change) -> None:
        """Go where the pointer is: both sliders, one picture."""
        if not change["new"]:
            return
        controls = self._point()
        try:
            wanted = [float(text) for text in change["new"].split()]
            places = [round(x / c.step) * c.step for x, c in zip(wanted, controls, strict=True)]
        except ValueError:
            return  # nothing that our own script would send
        for control in controls:
            control.unobserve(self._redraw, names="value")
        try:
            for control, place in zip(controls, places, strict=True):
                control.value = place
        finally:
            for control in controls:
                control.observe(self._redraw, names="value")
        self._redraw(change)
        self._field.value = ""  # or the same point typed again would be no change

    def static_html(self, *args, **kwargs) -> str:
        """The page of :class:`Explorer`, whose picture moves the sliders too."""
        page = super().static_html(*args, **kwargs)
        (name,) = re.findall(r'<div class="retina-explorer" id="([\w-]+)"', page)
        values = json.dumps(list(self._frames.values()))
        return f"{page}\n<script>{self._fill(_STATIC, name=name, values=values)}</script>"

    def _point(self) -> list[ipywidgets.Widget]:
        return list(self.controls.values())[:2]

    def _fill(self, script: str, **parts: str) -> str:
        left, bottom, width, height = self._panel
        last = [control.max for control in self._point()]
        # the point runs between the centres of the first and the last pixel
        pixel = width / (last[0] + 1), height / (last[1] + 1)
        start = left + pixel[0] / 2, 1 - bottom - height + pixel[1] / 2
        extent = width - pixel[0], height - pixel[1]
        numbers = {"start": start, "extent": extent, "last": last}
        parts |= {name: json.dumps(value) for name, value in numbers.items()}
        parts["follow"] = re.sub("§(start|extent|last)§", lambda found: parts[found[1]], _FOLLOW)
        return re.sub(r"§(\w+)§", lambda found: parts[found[1]], script)


_FOLLOW = """(event, picture, move) => {
  const box = picture.getBoundingClientRect(), start = §start§, extent = §extent§;
  const last = §last§, along = (share, axis) =>
    last[axis] * Math.min(1, Math.max(0, (share - start[axis]) / extent[axis]));
  const go = (e) => move(along((e.clientX - box.left) / box.width, 0),
                         along((e.clientY - box.top) / box.height, 1));
  const stop = () => removeEventListener("pointermove", go);
  addEventListener("pointermove", go);
  for (const end of ["pointerup", "pointercancel"]) addEventListener(end, stop, { once: true });
  go(event);
}"""

# At most ten points a second: the kernel draws a picture for each.
_LIVE = """
const field = document.querySelector(".§place§ input");
let wish = "", timer = null;
const send = () => {
  timer = null;
  field.value = wish;
  field.dispatchEvent(new Event("change", { bubbles: true }));
};
(§follow§)(event, this.firstElementChild, (x, y) => {
  wish = x.toFixed(3) + " " + y.toFixed(3);
  timer = timer || setTimeout(send, 100);
});
"""

_STATIC = """
(() => {
  const box = document.getElementById("§name§"), picture = box.querySelector("img");
  const inputs = [...box.querySelectorAll(".controls input")], values = §values§;
  const set = (axis, index) => {
    inputs[axis].value = index;
    inputs[axis].dispatchEvent(new Event("input"));
  };
  const nearest = (all, value) => all.reduce((best, other, i) =>
    Math.abs(other - value) < Math.abs(all[best] - value) ? i : best, 0);
  const follow = §follow§;
  Object.assign(picture.style, { cursor: "crosshair", touchAction: "none" });
  picture.tabIndex = -1;  // takes the focus when clicked; by Tab one reaches the sliders
  picture.draggable = false;
  picture.addEventListener("pointerdown", (event) => follow(event, picture,
    (...point) => point.forEach((value, axis) => set(axis, nearest(values[axis], value)))));
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, -1],
                   ArrowDown: [1, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    set(step[0], Number(inputs[step[0]].value) + step[1]);
  });
})();
"""
