// The slice on one or two canvases: the tumour painted at a threshold, zoomed and moved together.

const MOST_ZOOM = 16;
const BAR_LENGTHS = [1, 2, 5, 10, 20, 50, 100];  // mm

/** The edges between tumour and the rest, along the pixels' sides. */
function rim(inside, box) {
  const path = new Path2D();
  const trace = (from, to, across, differs, point) => {
    for (let line = from; line <= to; line++) {
      let start = -1;
      for (let at = across[0]; at <= across[1]; at++) {
        const edge = at < across[1] && differs(line, at);
        if (edge && start < 0) start = at;
        if (!edge && start >= 0) {
          path.moveTo(...point(line, start));
          path.lineTo(...point(line, at));
          start = -1;
        }
      }
    }
  };
  const rows = [box.top, box.bottom], columns = [box.left, box.right];
  trace(...rows, columns, (y, x) => inside(x, y) !== inside(x, y - 1), (y, x) => [x, y]);
  trace(...columns, rows, (x, y) => inside(x, y) !== inside(x - 1, y), (x, y) => [x, y]);
  return path;
}

/** Where the tumour is: its box, its outline and itself as a picture; null where there is none. */
function tumourOf(slice, level, colour) {
  const { levels, width, height } = slice;
  const box = { left: width, right: 0, top: height, bottom: 0 };
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (levels[at] < level) continue;
      if (x < box.left) box.left = x;
      if (x >= box.right) box.right = x + 1;
      if (y < box.top) box.top = y;
      box.bottom = y + 1;
    }
  }
  if (!box.bottom) return null;
  const on = (x, y) => x >= 0 && y >= 0 && x < width && y < height;
  const inside = (x, y) => on(x, y) && levels[y * width + x] >= level;
  const wide = box.right - box.left, high = box.bottom - box.top;
  const picture = new OffscreenCanvas(wide, high);
  const pen = picture.getContext("2d"), pixels = pen.createImageData(wide, high);
  for (let y = 0, at = 0; y < high; y++) {
    for (let x = 0; x < wide; x++, at += 4) {
      if (inside(x + box.left, y + box.top)) pixels.data.set(colour, at);
    }
  }
  pen.putImageData(pixels, 0, 0);
  return { box, picture, path: rim(inside, box) };
}

class Viewer {
  /**
   * @param panes The canvases: the first shows the slice alone, the second with the tumour.
   * @param zoomed Called with the zoom after it changed.
   * @param pointed Called with a pixel {x, y, level}, or null off the slice.
   * @param scrolled Called with a number of slices to go on, or back where it is negative.
   */
  constructor(panes, { zoomed, pointed, scrolled }) {
    this.panes = panes;
    this.calls = { zoomed, pointed, scrolled };
    this.slice = null;
    this.spacing = null;
    this.look = { level: 128, paint: "fill", opacity: 0.45 };
    this.zoom = 1;
    this.pointers = new Map();
    panes.forEach((pane) => this.listen(pane));
    const observer = new ResizeObserver(() => this.later());
    panes.forEach((pane) => observer.observe(pane));
  }

  /** Shows a slice of {image, levels, width, height}; one of the same size is zoomed the same. */
  show(slice, spacing) {
    const same = this.slice?.width === slice.width && this.slice?.height === slice.height;
    this.slice = slice;
    this.spacing = spacing;
    this.tumour = undefined;
    if (!same) this.fit();
    this.later();
  }

  clear() {
    this.slice = null;
    this.later();
  }

  /** Changes {level, paint, opacity}. */
  set(look) {
    if ("level" in look && look.level !== this.look.level) this.tumour = undefined;
    Object.assign(this.look, look);
    this.later();
  }

  fit() {
    this.zoom = 1;
    if (this.slice) this.centre = [this.slice.width / 2, this.slice.height / 2];
    this.moved();
  }

  /** Zooms by a factor about a point of a pane, in CSS pixels; without one, about its middle. */
  zoomBy(factor, pane = this.panes[1], at = [pane.clientWidth / 2, pane.clientHeight / 2]) {
    if (!this.slice) return;
    const before = this.pixelAt(pane, at);
    this.zoom = Math.min(MOST_ZOOM, Math.max(1, this.zoom * factor));
    const after = this.pixelAt(pane, at);
    this.centre = [0, 1].map((k) => this.centre[k] + before[k] - after[k]);
    this.moved();
  }

  /** Moves the slice by CSS pixels. */
  moveBy(x, y) {
    if (!this.slice) return;
    const [sx, sy] = this.scales(this.panes[1]);
    this.centre = [this.centre[0] - x / sx, this.centre[1] - y / sy];
    this.moved();
  }

  moved() {
    if (this.slice) {
      const pane = this.panes[1], scales = this.scales(pane);
      const seen = [pane.clientWidth / scales[0], pane.clientHeight / scales[1]];
      const size = [this.slice.width, this.slice.height];
      this.centre = this.centre.map((value, k) => seen[k] >= size[k]
        ? size[k] / 2 : Math.min(size[k] - seen[k] / 2, Math.max(seen[k] / 2, value)));
    }
    // A finger scrolls the page over a slice that is seen whole, and moves one that is not.
    for (const pane of this.panes) pane.style.touchAction = this.zoom > 1 ? "none" : "pan-y";
    this.calls.zoomed(this.zoom);
    this.later();
  }

  /** CSS pixels per pixel of the slice, across and down: pixels need not be square. */
  scales(pane) {
    const [down, across] = this.spacing || [1, 1], least = Math.min(down, across);
    const wide = across / least, high = down / least;
    const fit = Math.min(pane.clientWidth / (this.slice.width * wide),
      pane.clientHeight / (this.slice.height * high));
    return [fit * wide * this.zoom, fit * high * this.zoom];
  }

  pixelAt(pane, at) {
    const scales = this.scales(pane), size = [pane.clientWidth, pane.clientHeight];
    return [0, 1].map((k) => this.centre[k] + (at[k] - size[k] / 2) / scales[k]);
  }

  later() {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => {
      this.due = false;
      this.panes.forEach((pane, n) => this.draw(pane, n === 1));
    });
  }

  draw(pane, painted) {
    const density = devicePixelRatio || 1, pen = pane.getContext("2d");
    pane.width = Math.round(pane.clientWidth * density);
    pane.height = Math.round(pane.clientHeight * density);
    if (!this.slice || !pane.width) return;
    const [sx, sy] = this.scales(pane).map((scale) => scale * density);
    const left = pane.width / 2 - this.centre[0] * sx, top = pane.height / 2 - this.centre[1] * sy;
    pen.setTransform(sx, 0, 0, sy, left, top);
    pen.imageSmoothingEnabled = sx < 4;  // beyond that one wants to see the pixels
    pen.imageSmoothingQuality = "high";
    pen.drawImage(this.slice.image, 0, 0);
    if (painted && this.look.paint !== "none") this.paint(pen, [sx, 0, 0, sy, left, top], density);
    pen.setTransform(density, 0, 0, density, 0, 0);
    if (this.spacing) this.rule(pen, pane, sx / density / this.spacing[1]);
  }

  paint(pen, matrix, density) {
    if (this.tumour === undefined) {
      const colour = getComputedStyle(this.panes[1]).getPropertyValue("--tumour-rgb");
      this.tumour = tumourOf(this.slice, this.look.level, [...colour.split(",").map(Number), 255]);
      this.colour = `rgb(${colour})`;
    }
    if (!this.tumour) return;
    const { box, picture, path } = this.tumour;
    if (this.look.paint === "fill") {
      pen.globalAlpha = this.look.opacity;
      pen.imageSmoothingEnabled = false;
      pen.drawImage(picture, box.left, box.top);
    } else {
      // The path is scaled, not the pen: lines are as thin at any zoom.
      const scaled = new Path2D();
      scaled.addPath(path, new DOMMatrix(matrix));
      pen.resetTransform();
      pen.globalAlpha = this.look.opacity;
      pen.lineCap = "square";
      pen.lineWidth = 1.75 * density;
      pen.strokeStyle = this.colour;
      pen.stroke(scaled);
    }
    pen.globalAlpha = 1;
  }

  /** Draws a bar of a round number of millimetres. */
  rule(pen, pane, perMillimetre) {
    const most = Math.min(110, pane.clientWidth / 3);
    const length = BAR_LENGTHS.findLast((mm) => mm * perMillimetre <= most);
    if (!length) return;
    const wide = length * perMillimetre, y = pane.clientHeight - 12;
    pen.font = "12px system-ui, sans-serif";
    pen.lineJoin = "round";
    for (const [colour, width] of [["#000", 4], ["#fff", 1.5]]) {
      pen.strokeStyle = colour;
      pen.lineWidth = width;
      pen.stroke(new Path2D(`M12 ${y - 5}V${y}H${12 + wide}V${y - 5}`));
      if (colour === "#000") pen.strokeText(`${length} mm`, 18 + wide, y + 2);
    }
    pen.fillStyle = "#fff";
    pen.fillText(`${length} mm`, 18 + wide, y + 2);
  }

  listen(pane) {
    const at = (event) => {
      const box = pane.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    pane.addEventListener("wheel", (event) => {
      event.preventDefault();
      if (event.shiftKey) this.calls.scrolled(Math.sign(event.deltaY || event.deltaX));
      else this.zoomBy(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), pane, at(event));
    }, { passive: false });
    pane.addEventListener("pointerdown", (event) => {
      pane.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, at(event));
    });
    for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) {
      pane.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
    }
    pane.addEventListener("pointermove", (event) => {
      this.point(pane, at(event));
      const before = this.pointers.get(event.pointerId);
      if (before) this.drag(pane, event.pointerId, before, at(event));
    });
    pane.addEventListener("pointerleave", () => this.calls.pointed(null));
    pane.addEventListener("dblclick", (event) => {
      if (this.zoom > 1) this.fit(); else this.zoomBy(3, pane, at(event));
    });
  }

  drag(pane, id, before, now) {
    this.pointers.set(id, now);
    const [other] = [...this.pointers].filter(([key]) => key !== id).map(([, place]) => place);
    if (!other) {
      this.moveBy(now[0] - before[0], now[1] - before[1]);
      return;
    }
    const apart = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
    const middle = [0, 1].map((k) => (now[k] + other[k]) / 2);
    this.moveBy((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
    this.zoomBy(apart(now, other) / apart(before, other), pane, middle);
  }

  point(pane, at) {
    if (!this.slice) return;
    const [x, y] = this.pixelAt(pane, at).map(Math.floor), { width, height, levels } = this.slice;
    const on = x >= 0 && y >= 0 && x < width && y < height;
    this.calls.pointed(on ? { x, y, level: levels[y * width + x] } : null);
  }
}
